use causeway_schemas::Region;

/// How much the distance from the centre counts against the area, both in px². From `align_dataset_mtcnn.py` of facenet
/// (<https://github.com/davidsandberg/facenet>), by which such photo sets are commonly prepared.
const CENTRING: f32 = 2.0;

/// Of the faces of one photo the one that it is of: the largest nearest the centre. Gives its place in `regions`.
///
/// The score of a face is its area less twice the squared distance of its centre from the photo's; of equal ones the first
/// counts. Where a labelled photo shows several people, enrolling and measuring take this one.
pub fn largest_centred(regions: &[Region]) -> Option<usize> {
    let score = |region: &Region| {
        let [width, height] = region.frame.map(|len| len as f32);
        let away =
            (region.x + region.w / 2.0 - width / 2.0).powi(2) + (region.y + region.h / 2.0 - height / 2.0).powi(2);
        region.w * region.h - CENTRING * away
    };
    // `max_by` keeps the last of equal ones.
    let scored = regions.iter().map(score).enumerate().rev();
    scored.max_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(x: f32, y: f32, side: f32) -> Region {
        let frame = [100, 100];
        Region { x, y, w: side, h: side, score: 1.0, sharpness: 0.0, landmarks: Vec::new(), frame }
    }

    #[test]
    fn a_smaller_face_in_the_centre_wins_over_a_larger_at_the_border() {
        assert_eq!(largest_centred(&[region(0.0, 0.0, 42.0), region(30.0, 30.0, 40.0)]), Some(1));
    }

    #[test]
    fn of_two_in_the_centre_the_larger_wins() {
        assert_eq!(largest_centred(&[region(45.0, 45.0, 10.0), region(30.0, 30.0, 40.0)]), Some(1));
    }

    #[test]
    fn of_equal_ones_the_first() {
        assert_eq!(largest_centred(&[region(5.0, 5.0, 10.0), region(5.0, 5.0, 10.0)]), Some(0));
        assert_eq!(largest_centred(&[]), None);
    }
}
