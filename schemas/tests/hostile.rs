//! Foreign bytes: an error that says what is wrong, never a panic, never more memory than the bytes justify.

use causeway_schemas::{Codec, Crop, Decision, DecodeError, Feature, Frame, Meta, decode, encode};
use proptest::prelude::*;

fn reason(kind: Option<&str>, body: &[u8]) -> &'static str {
    decode::<Feature>(kind, Codec::Bincode, body).unwrap_err().reason()
}

#[test]
fn a_kind_that_is_not_taken_is_told() {
    assert_eq!(reason(None, b""), "unknown-kind");
    assert_eq!(reason(Some("cake.v1"), b""), "unknown-kind");
    assert_eq!(reason(Some("frame.v1"), b""), "unknown-kind");
    assert_eq!(reason(Some("feature"), b""), "unknown-kind");
    assert_eq!(reason(Some("feature.v0"), b""), "unknown-kind");
    assert_eq!(reason(Some("feature.v2"), b""), "newer-version");
    assert_eq!(reason(Some("feature.v1"), b"\xff\xff\xff"), "malformed");
}

#[test]
fn a_body_that_is_too_long_is_not_read() {
    let long = vec![0; (1 << 20) + 1];
    let error = decode::<Decision>(Some("decision.v1"), Codec::Json, &long).unwrap_err();
    assert!(matches!(error, DecodeError::TooLong { max, .. } if max == 1 << 20), "{error}");
}

#[test]
fn a_forged_length_takes_no_memory() {
    // A text of 2^60 bytes where the first field of a frame is.
    let mut body = (1_u64 << 60).to_le_bytes().to_vec();
    body.extend([0; 64]);
    assert_eq!(decode::<Frame>(Some("frame.v1"), Codec::Bincode, &body).unwrap_err().reason(), "malformed");
}

/// It would be `null` in the JSON of an outcome, which nobody reads back.
#[test]
fn a_number_that_is_none_is_refused() {
    let golden = include_str!("../golden/decision.v2.json");
    let read = |body: &str| decode::<Decision>(Some("decision.v2"), Codec::Json, body.as_bytes());
    let decision = read(golden).unwrap();
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut others = [(); 4].map(|()| decision.clone());
        others[0].region.x = wrong;
        others[1].region.landmarks[1][0] = wrong;
        others[2].margin = wrong;
        others[3].top[1].score = wrong;
        for other in others {
            let body = encode(&other, Codec::Bincode);
            let error = decode::<Decision>(Some("decision.v2"), Codec::Bincode, &body).unwrap_err();
            assert_eq!(error.reason(), "malformed", "{other:?}");
        }
    }
    assert!(read(&golden.replace("0.9375", "1e39")).is_err());
}

proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic(body in proptest::collection::vec(any::<u8>(), 0..512), json in any::<bool>()) {
        let codec = if json { Codec::Json } else { Codec::Bincode };
        let _ = decode::<Frame>(Some("frame.v1"), codec, &body);
        let _ = decode::<Crop>(Some("crop.v1"), codec, &body);
        let _ = decode::<Feature>(Some("feature.v1"), codec, &body);
    }

    #[test]
    fn no_headers_make_a_reader_panic(values in proptest::collection::vec("\\PC{0,40}", 8)) {
        let names = ["Causeway-Id", "Causeway-Root", "Causeway-Part", "Causeway-Generation", "Causeway-Kind", "Causeway-Stage", "Causeway-Parent", "traceparent"];
        let get = |name: &str| names.iter().position(|known| *known == name).map(|place| values[place].as_str());
        let _ = Meta::from_headers(get);
    }
}
