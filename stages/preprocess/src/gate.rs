use causeway_pipelines::Gate;
use causeway_schemas::Region;

/// What a face is not good enough in, with its figures; `None` when it is.
pub(crate) fn below(gate: &Gate, region: &Region) -> Option<String> {
    let at_least = [
        ("score", region.score, gate.min_score, 2),
        ("size in px", region.w.min(region.h), gate.min_size, 0),
        ("sharpness", region.sharpness, gate.min_sharpness, 1),
    ];
    for (what, found, needed, digits) in at_least {
        if below_or_no_number(found, needed) {
            return Some(format!("{what} {found:.digits$}, needs {needed:.digits$}"));
        }
    }
    let turn = turn(&region.landmarks);
    below_or_no_number(gate.max_turn, turn)
        .then(|| format!("turned by {turn:.2}, at most {:.2} will do", gate.max_turn))
}

fn below_or_no_number(found: f32, needed: f32) -> bool {
    found < needed || found.is_nan() || needed.is_nan()
}

/// How far a head is turned, from its eyes and nose: see `Gate::max_turn`. 0 without landmarks.
fn turn(landmarks: &[[f32; 2]]) -> f32 {
    let &[right, left, nose, ..] = landmarks else { return 0.0 };
    let eyes = [left[0] - right[0], left[1] - right[1]];
    let aside = [nose[0] - f32::midpoint(left[0], right[0]), nose[1] - f32::midpoint(left[1], right[1])];
    let squared = eyes[0] * eyes[0] + eyes[1] * eyes[1];
    ((aside[0] * eyes[0] + aside[1] * eyes[1]) / squared).abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATE: Gate = Gate { min_score: 0.8, min_size: 24.0, min_sharpness: 15.0, max_turn: 0.9 };

    fn region(score: f32, w: f32, sharpness: f32) -> Region {
        Region { x: 0.0, y: 0.0, w, h: 90.0, score, sharpness, landmarks: Vec::new(), frame: [100, 100] }
    }

    #[test]
    fn a_good_face_passes() {
        assert_eq!(below(&GATE, &region(0.8, 24.0, 15.0)), None);
    }

    #[test]
    fn each_figure_can_fail_and_is_told() {
        assert_eq!(below(&GATE, &region(0.72, 50.0, 90.0)).unwrap(), "score 0.72, needs 0.80");
        assert_eq!(below(&GATE, &region(0.9, 12.0, 90.0)).unwrap(), "size in px 12, needs 24");
        assert_eq!(below(&GATE, &region(0.9, 50.0, 3.21)).unwrap(), "sharpness 3.2, needs 15.0");
        assert!(below(&GATE, &region(0.9, 50.0, f32::NAN)).is_some());
    }

    #[test]
    fn a_profile_fails_however_the_head_is_tilted() {
        let turned = |nose: [f32; 2]| {
            let landmarks = vec![[0.0, 0.0], [8.0, 6.0], nose, [1.0, 9.0], [7.0, 13.0]];
            below(&GATE, &Region { landmarks, ..region(0.9, 50.0, 90.0) })
        };
        // Straight below the middle of the eyes, and by one distance of the eyes to the side of that.
        assert_eq!(turned([1.0, 7.0]), None);
        assert_eq!(turned([9.0, 13.0]).unwrap(), "turned by 1.00, at most 0.90 will do");
        assert!(below(&GATE, &Region { landmarks: vec![[5.0, 5.0]; 5], ..region(0.9, 50.0, 90.0) }).is_some());
    }
}
