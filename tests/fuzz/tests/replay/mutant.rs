/// Longest input that is made, bytes.
const MAX_LEN: usize = 8 << 10;

/// Numbers at which decoders err.
const EDGES: [u64; 12] = [
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFF_FFFF,
    0xFFFF_FFFF,
    u64::MAX,
    // As 32-bit floats: infinite, no number.
    0x7F80_0000,
    0x7FC0_0000,
];

/// One of the inputs, changed in a few places, perhaps with a piece of another.
pub(super) fn of(inputs: &[Vec<u8>], random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = random.choice(inputs).cloned().unwrap_or_default();
    for _ in 0..random.usize(1..=4) {
        change(&mut bytes, inputs, random);
    }
    bytes.truncate(MAX_LEN);
    bytes
}

fn change(bytes: &mut Vec<u8>, inputs: &[Vec<u8>], random: &mut fastrand::Rng) {
    let at = random.usize(0..=bytes.len());
    let end = at + random.usize(0..=(bytes.len() - at).min(64));
    match random.u8(0..8) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.u8(0..8),
        1 if at < bytes.len() => bytes[at] = random.u8(..),
        2 => {
            let edge = random.choice(EDGES).unwrap_or_default();
            let (little, big) = (edge.to_le_bytes(), edge.to_be_bytes());
            let width = random.choice([1, 2, 4, 8]).unwrap_or(1);
            let number = if random.bool() { &little[..width] } else { &big[8 - width..] };
            let end = (at + width).min(bytes.len());
            bytes.splice(at..end, number.iter().copied());
        }
        3 => drop(bytes.drain(at..end)),
        4 => {
            let again = bytes[at..end].to_vec();
            bytes.splice(at..at, again);
        }
        5 => {
            let digit = b"0123456789-.eE\"'[]{}=\n"[random.usize(0..22)];
            bytes.insert(at, digit);
        }
        6 => bytes.truncate(at),
        _ => {
            let other = random.choice(inputs).map_or(&[][..], Vec::as_slice);
            let from = random.usize(0..=other.len());
            let piece = &other[from..from + random.usize(0..=(other.len() - from).min(256))];
            bytes.splice(at..end, piece.iter().copied());
        }
    }
}
