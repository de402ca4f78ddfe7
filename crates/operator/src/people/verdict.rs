use std::fmt;

use causeway_schemas::Region;
use serde_json::{Value, json};

use crate::people::gallery::MAX_VECTORS;

/// What became of a photo that somebody was to be enrolled from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum PhotoVerdict {
    /// Its face is in the gallery.
    Enrolled(Taken),
    /// It was in the gallery before.
    Known,
    /// The person has as many vectors as one may have.
    Full,
    /// No face was found.
    NoFace(String),
    /// Faces were found, none good enough; with the gate and the figures.
    TooPoor(String),
    /// It cannot be read as a picture.
    NotAnImage(String),
    /// The face could not be made a vector.
    Failed(String),
}

/// The face that was taken of a photo.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Taken {
    /// Where it is.
    pub(crate) region: Region,
    /// How many faces were good enough.
    pub(crate) faces: usize,
}

impl PhotoVerdict {
    /// Whether the photo's face is in the gallery now.
    pub(crate) fn is_known(&self) -> bool {
        matches!(self, Self::Enrolled(_) | Self::Known | Self::Full)
    }

    /// A short fixed name.
    fn word(&self) -> &'static str {
        match self {
            Self::Enrolled(_) => "enrolled",
            Self::Known => "known",
            Self::Full => "full",
            Self::NoFace(_) => "no-face",
            Self::TooPoor(_) => "too-poor",
            Self::NotAnImage(_) => "not-an-image",
            Self::Failed(_) => "failed",
        }
    }

    pub(crate) fn to_json(&self, photo: &str) -> Value {
        let mut object = json!({ "photo": photo, "verdict": self.word(), "text": self.to_string() });
        if let Self::Enrolled(Taken { region, faces }) = self {
            let Region { x, y, w, h, score, sharpness, .. } = region;
            object["face"] = json!({ "x": x, "y": y, "w": w, "h": h, "score": score, "sharpness": sharpness });
            object["faces"] = json!(faces);
        }
        object
    }
}

impl fmt::Display for PhotoVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enrolled(Taken { region, faces }) => {
                let Region { x, y, w, h, score, .. } = region;
                write!(f, "enrolled: score {score:.2}, {w:.0} × {h:.0} px")?;
                if *faces > 1 {
                    write!(f, "; {faces} faces, the largest nearest the centre was taken, at {x:.0}, {y:.0}")?;
                }
                Ok(())
            }
            Self::Known => f.write_str("enrolled before"),
            Self::Full => write!(f, "not taken: a person has at most {MAX_VECTORS} vectors"),
            Self::NoFace(detail) => write!(f, "no face: {detail}"),
            Self::TooPoor(detail) => write!(f, "too poor: {detail}"),
            Self::NotAnImage(detail) => write!(f, "not an image: {detail}"),
            Self::Failed(detail) => write!(f, "failed: {detail}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_reads_as_a_sentence() {
        let region = Region {
            x: 10.4,
            y: 20.0,
            w: 99.6,
            h: 120.0,
            score: 0.934,
            sharpness: 50.0,
            landmarks: vec![],
            frame: [1, 1],
        };
        let one = PhotoVerdict::Enrolled(Taken { region: region.clone(), faces: 1 });
        assert_eq!(one.to_string(), "enrolled: score 0.93, 100 × 120 px");
        let three = PhotoVerdict::Enrolled(Taken { region, faces: 3 });
        let text = three.to_string();
        assert!(text.ends_with("3 faces, the largest nearest the centre was taken, at 10, 20"), "{text}");
        assert_eq!(three.to_json("a.jpg")["faces"], 3);
        assert_eq!(PhotoVerdict::Known.to_json("a.jpg")["verdict"], "known");
        assert!(PhotoVerdict::Known.is_known() && !PhotoVerdict::NoFace(String::new()).is_known());
    }
}
