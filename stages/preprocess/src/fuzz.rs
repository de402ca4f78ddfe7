//! What private code of this crate makes of a detector's numbers, for `tests/fuzz`; no part of the interface.

use causeway_imaging::{Picture, sharpness};
use causeway_pipelines::Gate;
use causeway_schemas::Region;
use ndarray::ArrayViewD;

use crate::detector::{Grid, HEADS, STRIDES, decode, letterboxed, places, suppress};
use crate::{align, gate, largest_first, region};

/// For each grid of a detector that is shown a picture: its places, and the numbers of each that every head has.
pub fn grids(picture: &Picture) -> [(usize, [usize; 4]); 3] {
    let size = letterboxed(picture);
    STRIDES.map(|stride| (places(size, stride), HEADS.map(|(_, numbers)| numbers as usize)))
}

/// The faces that a detector's outputs mean, for each grid the four heads of its stride: those that can be turned upright, each
/// with the aligned picture, and why it is not good enough. `None` where the outputs have not the shapes of a detector's.
pub fn faces(
    picture: &Picture,
    grids: [[ArrayViewD<'_, f32>; 4]; 3],
    min_score: f32,
) -> Option<Vec<(Region, Picture, Option<String>)>> {
    let (mut faces, size) = (Vec::new(), letterboxed(picture));
    for (stride, heads) in STRIDES.into_iter().zip(grids) {
        decode(&Grid::new(heads, stride, size).ok()?, min_score, &mut faces);
    }
    let faces = largest_first(suppress(faces)).into_iter().filter_map(|face| {
        let aligned = align(picture, &face)?;
        let region = region(&face, picture, sharpness(&aligned));
        let below = gate::below(&Gate::default(), &region);
        Some((region, aligned, below))
    });
    Some(faces.collect())
}
