//! `YuNet` (<https://github.com/opencv/opencv_zoo/tree/main/models/face_detection_yunet>, MIT): where the faces are.

use causeway_imaging::{Picture, resize};
use causeway_inference::{OpenError, Outputs, Port, RunError, Session};
use causeway_pipelines::Manifest;
use ndarray::{Array4, ArrayView3, ArrayViewD, Ix3};

/// The grids that the model looks at: px of its input between two places.
pub(crate) const STRIDES: [u32; 3] = [8, 16, 32];

/// What the model says of every place of a grid, and in how many numbers.
pub(crate) const HEADS: [(&str, u32); 4] = [("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)];

/// Both sides of the model's input are multiples of this: the coarsest grid.
const MULTIPLE: u32 = 32;

/// Two boxes that overlap by more than this are one face. `FaceDetectorYN`'s default.
const MAX_OVERLAP: f32 = 0.3;

/// Only so many candidates, the best, are compared with each other. `FaceDetectorYN`'s default.
const MAX_CANDIDATES: usize = 5000;

/// A face longer than this part of the input's longer side is looked for at half the size: the model was trained on faces of
/// 10 to 300 px, and at 640 px it scores one that fills the picture low, or misses it.
const LARGE: f32 = 0.75;

/// A box longer than this many input sides is no face but a number gone wrong.
const MAX_SIDES: f32 = 2.0;

/// A face as detected, in px of the picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Face {
    /// Left, top, width, height, px. May reach over the picture's border.
    pub(crate) bounds: [f32; 4],
    /// The model's score, 0..1.
    pub(crate) score: f32,
    /// Right eye, left eye, nose, right and left corner of the mouth, px.
    pub(crate) landmarks: [[f32; 2]; 5],
}

impl Face {
    pub(crate) fn area(&self) -> f32 {
        self.bounds[2] * self.bounds[3]
    }

    fn longer_side(&self) -> f32 {
        self.bounds[2].max(self.bounds[3])
    }

    /// The same face where the picture is `by` times as large.
    pub(crate) fn scaled(mut self, by: f32) -> Self {
        self.bounds = self.bounds.map(|number| number * by);
        self.landmarks = self.landmarks.map(|point| point.map(|number| number * by));
        self
    }

    fn is_sound(&self, limit: f32) -> bool {
        let numbers = || self.bounds.iter().chain(self.landmarks.as_flattened());
        numbers().all(|number| number.is_finite() && number.abs() <= limit)
            && self.bounds[2] > 0.0
            && self.bounds[3] > 0.0
    }
}

/// The model, and how large it sees a picture.
pub(crate) struct Detector {
    session: Session,
    input_size: u32,
}

impl Detector {
    /// Opens the model; it sees the longer side of a picture as `input_size` px.
    pub(crate) fn open(manifest: &Manifest, threads: usize, input_size: u32) -> Result<Self, OpenError> {
        let names = STRIDES.map(|stride| HEADS.map(|(head, _)| format!("{head}_{stride}")));
        let numbers = HEADS.map(|(_, numbers)| [None, None, Some(numbers)]);
        let outputs: Vec<Port<'_>> = names
            .iter()
            .flat_map(|names| names.iter().zip(&numbers).map(|(name, shape)| Port { name, shape }))
            .collect();
        let input = Port { name: "input", shape: &[Some(1), Some(3), None, None] };
        let session = Session::open(manifest, threads)?.expecting(input, &outputs)?;
        Ok(Self { session, input_size })
    }

    /// The longer side that a picture is looked at, px.
    pub(crate) fn input_size(&self) -> u32 {
        self.input_size
    }

    /// The faces of a picture with at least `min_score`, the best first.
    ///
    /// The picture is seen twice: at the size of the input, and at half of it for faces too large for the first look.
    pub(crate) fn detect(&mut self, picture: &Picture, min_score: f32) -> Result<Vec<Face>, RunError> {
        let longer = picture.width().max(picture.height());
        let seen = resize_to(picture, self.input_size);
        let mut faces = self.look(&seen, longer, min_score)?;
        let half = (self.input_size / 2).next_multiple_of(MULTIPLE);
        // The mean of means is the mean: what was shrunk already is shrunk further, at a fraction of the work.
        let seen = resize_to(if longer > self.input_size { &seen } else { picture }, half);
        let second = self.look(&seen, longer, min_score)?;
        let large = LARGE * longer as f32;
        faces.extend(second.into_iter().filter(|face| face.longer_side() > large));
        Ok(suppress(faces))
    }

    /// One look at a picture that was scaled from one whose longer side has `longer` px; faces are in px of that one.
    fn look(&mut self, seen: &Picture, longer: u32, min_score: f32) -> Result<Vec<Face>, RunError> {
        let scale = f64::from(seen.width().max(seen.height())) / f64::from(longer);
        let input = letterbox(seen);
        let grid = [input.shape()[2], input.shape()[3]];
        let outputs = self.session.run(&input)?;
        let mut faces = Vec::new();
        for stride in STRIDES {
            decode(&Grid::of(&outputs, stride, grid)?, min_score, &mut faces);
        }
        Ok(suppress(faces).into_iter().map(|face| face.scaled((1.0 / scale) as f32)).collect())
    }
}

/// The picture with its longer side scaled to `size` px.
fn resize_to(picture: &Picture, size: u32) -> Picture {
    let scale = f64::from(size) / f64::from(picture.width().max(picture.height()));
    let side = |len: u32| ((f64::from(len) * scale).round() as u32).max(1);
    resize(picture, side(picture.width()), side(picture.height()))
}

/// The model's input: f32 `[1, 3, H, W]`, blue green red, 0..255; the picture at the top left, zeros up to the next multiple of
/// 32.
fn letterbox(picture: &Picture) -> Array4<f32> {
    let [height, width] = letterboxed(picture);
    let mut input = Array4::zeros([1, 3, height, width]);
    let planes = input.as_slice_mut().expect("a new array is in standard layout");
    let (blue, others) = planes.split_at_mut(height * width);
    let (green, red) = others.split_at_mut(height * width);
    let lines = blue.chunks_exact_mut(width).zip(green.chunks_exact_mut(width)).zip(red.chunks_exact_mut(width));
    for (((blue, green), red), row) in lines.zip(picture.rows()) {
        let (pixels, _) = row.as_chunks::<3>();
        for (((blue, green), red), &[r, g, b]) in blue.iter_mut().zip(green).zip(red).zip(pixels) {
            *red = f32::from(r);
            *green = f32::from(g);
            *blue = f32::from(b);
        }
    }
    input
}

/// Height and width of the model's input for a picture, px.
pub(crate) fn letterboxed(picture: &Picture) -> [usize; 2] {
    [picture.height(), picture.width()].map(|len| len.next_multiple_of(MULTIPLE) as usize)
}

/// Places of a grid of the model's input, whose height and width are `input`, px.
pub(crate) fn places(input: [usize; 2], stride: u32) -> usize {
    input.iter().map(|len| len / stride as usize).product()
}

/// What the model says of the places of one grid: `[1, N, 1]`, `[1, N, 1]`, `[1, N, 4]` and `[1, N, 10]`, N being the places.
pub(crate) struct Grid<'o> {
    class: ArrayView3<'o, f32>,
    object: ArrayView3<'o, f32>,
    bounds: ArrayView3<'o, f32>,
    points: ArrayView3<'o, f32>,
    stride: u32,
    /// Height and width of the input, px.
    input: [usize; 2],
}

impl<'o> Grid<'o> {
    fn of(outputs: &'o Outputs<'_>, stride: u32, input: [usize; 2]) -> Result<Self, RunError> {
        let [class, object, bounds, points] = HEADS.map(|(head, _)| outputs.view(&format!("{head}_{stride}")));
        let heads = [class?, object?, bounds?, points?];
        Self::new(heads, stride, input).map_err(|why| outputs.unfit(why))
    }

    /// A model may leave sizes open that its outputs then have otherwise than `open` was told.
    pub(crate) fn new(heads: [ArrayViewD<'o, f32>; 4], stride: u32, input: [usize; 2]) -> Result<Self, String> {
        let places = places(input, stride);
        let [class, object, bounds, points] = heads;
        let fit = |head: ArrayViewD<'o, f32>, at: usize| {
            let wanted = [1, places, HEADS[at].1 as usize];
            let found = head.shape().to_vec();
            let fits = found == wanted;
            head.into_dimensionality::<Ix3>().ok().filter(|_| fits).ok_or_else(|| {
                format!("an output of the grid of {stride} px has the shape {found:?}, and {wanted:?} was to come")
            })
        };
        Ok(Self {
            class: fit(class, 0)?,
            object: fit(object, 1)?,
            bounds: fit(bounds, 2)?,
            points: fit(points, 3)?,
            stride,
            input,
        })
    }
}

/// Adds the faces of one grid, in px of the input. Formulae: `FaceDetectorYNImpl` in
/// `OpenCV`, `modules/objdetect/src/face_detect.cpp`.
pub(crate) fn decode(grid: &Grid<'_>, min_score: f32, faces: &mut Vec<Face>) {
    let Grid { class, object, bounds, points, stride, input } = grid;
    let columns = input[1] / *stride as usize;
    let limit = MAX_SIDES * input[0].max(input[1]) as f32;
    for place in 0..class.shape()[1] {
        let score = (class[[0, place, 0]].clamp(0.0, 1.0) * object[[0, place, 0]].clamp(0.0, 1.0)).sqrt();
        // Also false for NaN.
        if score >= min_score {
            let at = [(place % columns) as f32, (place / columns) as f32];
            let bounds = std::array::from_fn(|i| bounds[[0, place, i]]);
            let points = std::array::from_fn(|i| [points[[0, place, 2 * i]], points[[0, place, 2 * i + 1]]]);
            let face = at_place(score, at, bounds, points, *stride as f32);
            faces.extend(Some(face).filter(|face| face.is_sound(limit)));
        }
    }
}

/// What the numbers of a place (column, row) of a grid mean, in px of the input.
fn at_place(score: f32, [column, row]: [f32; 2], bounds: [f32; 4], points: [[f32; 2]; 5], stride: f32) -> Face {
    let [centre_x, centre_y] = [(column + bounds[0]) * stride, (row + bounds[1]) * stride];
    let [width, height] = [bounds[2].exp() * stride, bounds[3].exp() * stride];
    Face {
        bounds: [centre_x - width / 2.0, centre_y - height / 2.0, width, height],
        score,
        landmarks: points.map(|[x, y]| [(x + column) * stride, (y + row) * stride]),
    }
}

/// Of faces that overlap keeps the one with the best score; the best first. The same faces always give the same answer,
/// whatever their order was.
pub(crate) fn suppress(mut faces: Vec<Face>) -> Vec<Face> {
    let order = |a: &Face, b: &Face| {
        let [a_place, b_place] = [a.bounds, b.bounds].map(|[x, y, ..]| (y, x));
        b.score.total_cmp(&a.score).then(a_place.0.total_cmp(&b_place.0)).then(a_place.1.total_cmp(&b_place.1))
    };
    faces.sort_by(order);
    faces.truncate(MAX_CANDIDATES);
    let mut kept: Vec<Face> = Vec::new();
    for face in faces {
        if kept.iter().all(|better| overlap(better, &face) <= MAX_OVERLAP) {
            kept.push(face);
        }
    }
    kept
}

/// Intersection over union.
fn overlap(a: &Face, b: &Face) -> f32 {
    let shared = |axis: usize| {
        let end = (a.bounds[axis] + a.bounds[axis + 2]).min(b.bounds[axis] + b.bounds[axis + 2]);
        (end - a.bounds[axis].max(b.bounds[axis])).max(0.0)
    };
    let both = shared(0) * shared(1);
    both / (a.area() + b.area() - both)
}

#[cfg(test)]
mod tests {
    use ndarray::s;

    use super::*;

    fn face(x: f32, y: f32, side: f32, score: f32) -> Face {
        Face { bounds: [x, y, side, side], score, landmarks: [[x, y]; 5] }
    }

    #[test]
    fn the_best_of_overlapping_faces_is_kept() {
        let faces = [face(0.0, 0.0, 10.0, 0.8), face(1.0, 0.0, 10.0, 0.9), face(20.0, 0.0, 10.0, 0.7)];
        let kept = suppress(faces.to_vec());
        assert_eq!(kept, [faces[1], faces[2]]);
        let mut turned = faces.to_vec();
        turned.reverse();
        assert_eq!(suppress(turned), kept);
    }

    #[test]
    fn overlap_is_intersection_over_union() {
        let (a, b) = (face(0.0, 0.0, 10.0, 0.9), face(5.0, 0.0, 10.0, 0.9));
        assert!((overlap(&a, &b) - 1.0 / 3.0).abs() < 1e-6);
        assert!((overlap(&a, &a) - 1.0).abs() < 1e-6);
        assert!(overlap(&a, &face(30.0, 0.0, 10.0, 0.9)).abs() < 1e-6);
    }

    #[test]
    fn the_input_is_padded_with_zeros_and_blue_first() {
        let picture = Picture::new(2, 1, vec![10, 20, 30, 11, 21, 31]).unwrap();
        let input = letterbox(&picture);
        assert_eq!(input.shape(), [1, 3, 32, 32]);
        assert_eq!(input.slice(s![0, .., 0, 0]).to_vec(), [30.0, 20.0, 10.0]);
        assert_eq!(input.slice(s![0, .., 0, 1]).to_vec(), [31.0, 21.0, 11.0]);
        assert!((input.sum() - 123.0).abs() < 1e-6);
    }

    #[test]
    fn a_place_is_decoded_as_the_model_means_it() {
        let found = at_place(0.9, [3.0, 2.0], [0.5, 0.25, 0.0, 2.0_f32.ln()], [[0.0, 1.0]; 5], 8.0);
        assert_eq!(found.landmarks, [[24.0, 24.0]; 5]);
        for (number, wanted) in found.bounds.iter().zip([24.0, 10.0, 8.0, 16.0]) {
            assert!((number - wanted).abs() < 1e-5, "{found:?}");
        }
    }

    #[test]
    fn outputs_of_another_shape_are_refused() {
        let heads = [[1, 16, 1], [1, 16, 1], [1, 16, 4], [1, 16, 10]].map(|shape| ndarray::ArrayD::zeros(&shape[..]));
        let grid = |input| Grid::new(heads.each_ref().map(|head| head.view()), 8, input).map(drop);
        assert_eq!(grid([32, 32]), Ok(()));
        let why = "an output of the grid of 8 px has the shape [1, 16, 1], and [1, 32, 1] was to come";
        assert_eq!(grid([32, 64]), Err(why.into()));
        let turned = [[1, 16, 1], [1, 16, 1], [1, 16, 4], [1, 10, 16]].map(|shape| ndarray::ArrayD::zeros(&shape[..]));
        assert!(Grid::new(turned.each_ref().map(|head| head.view()), 8, [32, 32]).is_err());
    }

    #[test]
    fn numbers_gone_wrong_are_no_face() {
        assert!(face(0.0, 0.0, 10.0, 0.9).is_sound(640.0));
        for wrong in [f32::NAN, f32::INFINITY, 1e9, -1.0, 0.0] {
            assert!(!face(0.0, 0.0, wrong, 0.9).is_sound(640.0), "{wrong}");
        }
        let huge = at_place(0.9, [0.0; 2], [0.0, 0.0, 200.0, 200.0], [[0.0; 2]; 5], 8.0);
        assert!(!huge.is_sound(640.0));
    }
}
