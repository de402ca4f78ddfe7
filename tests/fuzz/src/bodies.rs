//! Bodies of every kind. Before the body stands one byte: which kind, and from 128 on as JSON.

use causeway_cluster::Change;
use causeway_schemas::{
    Assignment, Codec, Crop, DeadLetter, Decision, Empty, Feature, Frame, Message, Person, Receipt, decode,
    decode_body, encode,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) fn run(bytes: &[u8]) {
    let Some((&which, body)) = bytes.split_first() else { return };
    let codec = if which < 128 { Codec::Bincode } else { Codec::Json };
    match which % 128 {
        0 => message::<Frame>("frame.v1", codec, body),
        1 => message::<Crop>("crop.v1", codec, body),
        2 => message::<Feature>("feature.v1", codec, body),
        3 => message::<Decision>("decision.v1", codec, body),
        4 => message::<Decision>("decision.v2", codec, body),
        5 => message::<Assignment>("assignment.v1", codec, body),
        6 => message::<Empty>("empty.v1", codec, body),
        7 => read_back::<DeadLetter>(decode_body(body, codec).ok()),
        // Only ever binary, and only ever JSON: it has numbers that the other cannot write.
        8 => canonical::<Change>(decode_body(body, Codec::Bincode).ok(), body),
        9 => drop(decode_body::<Person>(body, Codec::Json)),
        10 => read_back::<Receipt>(decode_body(body, codec).ok()),
        _ => {}
    }
}

fn message<M: Message>(kind: &str, codec: Codec, body: &[u8]) {
    let read = decode::<M>(Some(kind), codec, body).ok();
    if codec == Codec::Bincode && kind == M::kind() {
        canonical(read.as_ref(), body);
    }
    read_back(read);
}

/// There is one way to write a message: what was read is written with the same bytes.
fn canonical<T: Serialize>(read: Option<T>, body: &[u8]) {
    if let Some(read) = read {
        assert_eq!(encode(&read, Codec::Bincode), body, "written otherwise than it was read");
    }
}

/// What is written reads back, in either codec: an outcome of binary messages is JSON.
fn read_back<T: Serialize + DeserializeOwned>(read: Option<T>) {
    let Some(read) = read else { return };
    for codec in [Codec::Bincode, Codec::Json] {
        let written = encode(&read, codec);
        let again: T =
            decode_body(&written, codec).unwrap_or_else(|why| panic!("what was written as {codec:?}: {why}"));
        assert_eq!(encode(&again, codec), written, "another message came back as {codec:?}");
    }
}
