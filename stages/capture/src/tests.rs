use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::time::Instant;

use tempfile::TempDir;

use super::*;

/// The smallest PNG there is a header of: signature, IHDR of 1 × 1 8-bit grey, IDAT, IEND.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\0\0\0\0\x3a\x7e\x9b\x55\
\0\0\0\nIDATx\x9cc\0\0\0\x02\0\x01\x48\xaf\xa4\x71\0\0\0\0IEND\xaeB\x60\x82";

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    dir
}

fn options(input: impl AsRef<Path>) -> CaptureOptions {
    CaptureOptions {
        input: Some(input.as_ref().into()),
        max_pixels: 1_000_000,
        max_bytes: "1 MiB".parse().unwrap(),
        ..CaptureOptions::default()
    }
}

fn open(options: &CaptureOptions) -> Folder {
    Folder::open(options, "photos", Path::new("/nowhere"), 7).unwrap()
}

fn all(options: &CaptureOptions) -> Vec<Captured<Frame>> {
    let mut source = open(options);
    std::iter::from_fn(|| source.next()).collect()
}

fn items(captured: &[Captured<Frame>]) -> Vec<&str> {
    captured
        .iter()
        .map(|captured| match &captured.message {
            Ok(frame) => &frame.capture.item[..],
            Err(unreadable) => &unreadable.item[..],
        })
        .collect()
}

fn error(options: &CaptureOptions) -> String {
    match Folder::open(options, "photos", Path::new("/nowhere"), 7) {
        Ok(_) => panic!("opened"),
        Err(error) => format!("{error:#}"),
    }
}

#[test]
fn pictures_come_in_the_order_of_their_paths() {
    let dir = folder(&[
        ("b.PNG", PNG),
        ("a/z.jpeg", PNG),
        ("a/c.webp", PNG),
        ("a.jpg", PNG),
        ("note.txt", b"x"),
        ("raw", b"x"),
    ]);
    let captured = all(&options(&dir));
    assert_eq!(items(&captured), ["a.jpg", "a/c.webp", "a/z.jpeg", "b.PNG"]);
    let frame = captured[1].message.as_ref().unwrap();
    assert_eq!((&frame.capture.source[..], frame.capture.epoch, frame.capture.sequence), ("photos", 0, 1));
    assert_eq!(frame.image, PNG);
    assert!(frame.capture.captured_at > 0);
}

#[test]
fn an_id_is_of_the_path_and_the_content() {
    let dir = folder(&[("a.png", PNG), ("b.png", PNG)]);
    let first = all(&options(&dir));
    assert_eq!(first[0].id, Id::captured("photos", &format!("a.png {}", hex(&Sha256::digest(PNG)))));
    assert_ne!(first[0].id, first[1].id);
    assert_eq!(all(&options(&dir))[0].id, first[0].id);
    fs::write(dir.path().join("a.png"), [PNG, b"more"].concat()).unwrap();
    assert_ne!(all(&options(&dir))[0].id, first[0].id);
}

#[test]
fn hidden_files_and_loops_are_passed_over() {
    let dir = folder(&[(".hidden.png", PNG), (".cache/a.png", PNG), ("sub/a.png", PNG)]);
    symlink(dir.path(), dir.path().join("sub/up")).unwrap();
    symlink(dir.path().join("sub"), dir.path().join("sub/itself")).unwrap();
    symlink(dir.path().join("sub"), dir.path().join("linked")).unwrap();
    assert_eq!(items(&all(&options(&dir))), ["linked/a.png", "sub/a.png"]);
}

#[test]
fn a_glob_begins_at_the_folder_before_its_first_wildcard() {
    let dir = folder(&[("in/ann/1.png", PNG), ("in/ann/deep/2.png", PNG), ("in/bob/1.jpg", PNG), ("out/1.png", PNG)]);
    let captured = |glob: &str| all(&options(dir.path().join(glob)));
    assert_eq!(items(&captured("in/*/*.png")), ["ann/1.png"]);
    assert_eq!(items(&captured("in/**/*.png")), ["ann/1.png", "ann/deep/2.png"]);
    assert_eq!(items(&captured("in/{ann,bob}/1.*")), ["ann/1.png", "bob/1.jpg"]);
    assert_eq!(items(&captured("in/bob/1.jpg")), ["1.jpg"]);
    assert!(captured("in/*.webp").is_empty());
}

#[test]
fn a_relative_input_is_relative_to_the_pipeline_file() {
    let dir = folder(&[("photos/a.png", PNG)]);
    let mut source = Folder::open(&options("photos"), "photos", dir.path(), 7).unwrap();
    assert_eq!(source.remaining(), 1);
    assert!(source.next().is_some());
    assert_eq!(source.remaining(), 0);
}

#[test]
fn a_wildcard_in_a_folder_that_exists_is_a_name() {
    let dir = folder(&[("[x]/a.png", PNG), ("x/b.png", PNG)]);
    assert_eq!(items(&all(&options(dir.path().join("[x]")))), ["a.png"]);
}

#[test]
fn what_cannot_be_opened_says_what_to_do() {
    let missing = CaptureOptions { input: None, ..options("") };
    assert!(error(&missing).contains("set `input` in [stage.photos] or pass `--input DIR`"), "{}", error(&missing));
    assert!(error(&options("gone")).contains("/nowhere/gone: there is no such folder"), "{}", error(&options("gone")));
    assert!(error(&options("gone/*.png")).contains("there is no folder /nowhere/gone"));
    assert!(error(&options("/tmp/*[.png")).contains("no glob"));
    let dir = folder(&[]);
    let long = CaptureOptions { max_bytes: "100 MiB".parse().unwrap(), ..options(&dir) };
    assert!(error(&long).contains("max_bytes"));
    let still = CaptureOptions { rate: Some(0.0), ..options(&dir) };
    assert!(error(&still).contains("rate = 0"));
}

#[test]
fn an_empty_folder_is_an_ended_source() {
    let dir = folder(&[]);
    assert!(all(&CaptureOptions { repeat: true, ..options(&dir) }).is_empty());
}

#[test]
fn what_is_no_picture_keeps_its_bytes() {
    let dir = folder(&[("a.jpg", b"not a picture"), ("b.jpg", b""), ("c.png", PNG)]);
    let captured = all(&options(&dir));
    let refused = captured[0].message.as_ref().unwrap_err();
    assert_eq!((refused.reason, &refused.body[..]), ("not-an-image", &b"not a picture"[..]));
    assert!(captured[1].message.is_err());
    let frame = captured[2].message.as_ref().unwrap();
    assert_eq!(frame.capture.sequence, 2, "the place in the run, not among the good ones");
}

#[test]
fn pixels_are_capped_by_the_header() {
    let dir = folder(&[("a.png", PNG)]);
    let capped = CaptureOptions { max_pixels: 0, ..options(&dir) };
    assert_eq!(all(&capped)[0].message.as_ref().unwrap_err().reason, "too-many-pixels");
}

#[test]
fn a_file_is_not_read_further_than_its_bound() {
    let dir = folder(&[("a.png", &[0; 5000]), ("b.png", PNG)]);
    let bound = CaptureOptions { max_bytes: "1 KB".parse().unwrap(), ..options(&dir) };
    let captured = all(&bound);
    let refused = captured[0].message.as_ref().unwrap_err();
    assert_eq!((refused.reason, refused.body.len()), ("too-long", 1001));
    assert!(captured[1].message.is_ok());
    let exact =
        CaptureOptions { max_bytes: format!("{} B", PNG.len()).parse().unwrap(), ..options(dir.path().join("b.png")) };
    assert!(all(&exact)[0].message.is_ok());
}

#[test]
fn a_file_that_vanishes_is_unreadable_under_one_id() {
    let dir = folder(&[("a.png", PNG)]);
    symlink("nowhere", dir.path().join("b.png")).unwrap();
    let mut source = open(&options(&dir));
    fs::remove_file(dir.path().join("a.png")).unwrap();
    let gone = source.next().unwrap();
    let refused = gone.message.unwrap_err();
    assert_eq!((&refused.item[..], refused.reason), ("a.png", "unreadable"));
    assert_eq!(gone.id, Id::captured("photos", "a.png unreadable"));
    assert_eq!(source.next().unwrap().message.unwrap_err().reason, "unreadable");
    assert!(source.next().is_none());
}

#[test]
fn names_that_are_no_text_are_kept_apart() {
    let dir = folder(&[]);
    for name in [&b"\xff.png"[..], b"\xfe.png"] {
        fs::write(dir.path().join(std::ffi::OsStr::from_bytes(name)), PNG).unwrap();
    }
    let captured = all(&options(&dir));
    let items = items(&captured);
    assert!(items.iter().all(|item| item.starts_with("\u{fffd}.png~")), "{items:?}");
    assert_ne!(items[0], items[1]);
    assert_ne!(captured[0].id, captured[1].id);
}

#[test]
fn every_round_has_ids_of_its_own_and_sees_what_is_new() {
    let dir = folder(&[("a.png", PNG)]);
    let mut source = open(&CaptureOptions { repeat: true, ..options(&dir) });
    let first = source.next().unwrap();
    fs::write(dir.path().join("b.png"), PNG).unwrap();
    let later: Vec<_> = (0..3).map(|_| source.next().unwrap()).collect();
    assert_eq!(items(&later), ["a.png", "b.png", "a.png"]);
    let ids = [first.id, later[0].id, later[2].id];
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2]);
    let places = later.iter().map(|captured| &captured.message.as_ref().unwrap().capture);
    let places: Vec<_> = places.map(|capture| (capture.epoch, capture.sequence)).collect();
    assert_eq!(places, [(7, 1), (7, 2), (7, 3)]);
    // The next start has the first round again, and rounds of its own.
    let mut again =
        Folder::open(&CaptureOptions { repeat: true, ..options(&dir) }, "photos", Path::new("/"), 8).unwrap();
    let again: Vec<_> = (0..4).map(|_| again.next().unwrap().id).collect();
    assert_eq!(again[0], first.id);
    assert!(!later.iter().any(|captured| again[2..].contains(&captured.id)));
    fs::remove_dir_all(dir.path()).unwrap();
    assert_eq!(source.next().unwrap().message.unwrap_err().reason, "unreadable");
    assert!(source.next().is_none(), "the folder is gone: the source ends");
}

#[test]
fn a_rate_spreads_the_pictures() {
    let dir = folder(&[("a.png", PNG), ("b.png", PNG), ("c.png", PNG)]);
    let start = Instant::now();
    assert_eq!(all(&CaptureOptions { rate: Some(50.0), ..options(&dir) }).len(), 3);
    assert!(start.elapsed().as_millis() >= 40, "two periods of 20 ms between three pictures");
}
