//! What a detector gave for a picture: its width and height in a byte each, how many places its outputs have more or fewer than
//! they should, then the numbers, over and over.

use causeway_imaging::Picture;
use ndarray::ArrayD;

use crate::taken::Taken;

pub(crate) fn run(bytes: &[u8]) {
    let mut taken = Taken(bytes);
    let [width, height] = [taken.u8(), taken.u8()].map(|side| u32::from(side).max(1));
    let off = taken.u8();
    let numbers: Vec<f32> = taken.0.as_chunks::<4>().0.iter().map(|&bits| f32::from_le_bytes(bits)).collect();
    let mut numbers = numbers.into_iter().cycle();
    let picture =
        Picture::new(width, height, vec![90; (width * height * 3) as usize]).expect("as many bytes as pixels");
    let grids = causeway_preprocess::fuzz::grids(&picture).map(|(places, heads)| {
        let places = places.saturating_add_signed(isize::from(off as i8) / 64);
        heads.map(|count| {
            let values = (&mut numbers).chain(std::iter::repeat(0.0)).take(places * count).collect();
            ArrayD::from_shape_vec(vec![1, places, count], values).expect("as many numbers as the shape has")
        })
    });
    let views = grids.each_ref().map(|heads| heads.each_ref().map(|head| head.view()));
    let found = causeway_preprocess::fuzz::faces(&picture, views, 0.5);
    for (region, aligned, _) in found.iter().flatten() {
        let numbers = [region.x, region.y, region.w, region.h, region.score, region.sharpness];
        assert!(numbers.iter().chain(region.landmarks.as_flattened()).all(|number| number.is_finite()), "{region:?}");
        assert_eq!((aligned.width(), aligned.height()), (causeway_preprocess::ALIGNED, causeway_preprocess::ALIGNED));
    }
}
