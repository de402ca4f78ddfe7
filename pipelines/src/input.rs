use std::path::Path;

/// What the `input` of a capture stage names, by how it is written; nothing is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input<'a> {
    /// A folder, a glob or a file.
    Path(&'a Path),
    /// A stream on the network, of one of the [`SCHEMES`].
    Url(&'a str),
    /// A device: `/dev/video0`.
    Device(&'a Path),
    /// `-`: standard input.
    Stdin,
}

/// The schemes of URLs that are read.
pub const SCHEMES: [&str; 4] = ["rtsp", "rtsps", "http", "https"];

/// A URL that is not read. It is not repeated: there may be a password in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`input` is a URL with the scheme `{0}`: {known} are read, and everything else through standard input (`-`)", known = SCHEMES.join(", "))]
pub struct InputError(String);

/// Longest word before `://` that is taken for a scheme.
const LONGEST_SCHEME: usize = 16;

impl<'a> Input<'a> {
    /// Tells which it is.
    pub fn of(written: &'a Path) -> Result<Self, InputError> {
        let Some(text) = written.to_str() else { return Ok(Self::Path(written)) };
        if text == "-" {
            return Ok(Self::Stdin);
        }
        if let Some(scheme) = scheme(text) {
            let known = SCHEMES.iter().any(|known| known.eq_ignore_ascii_case(scheme));
            return if known { Ok(Self::Url(text)) } else { Err(InputError(scheme.into())) };
        }
        // A variable may hold the whole URL.
        if text.starts_with("${") {
            return Ok(Self::Url(text));
        }
        if text.starts_with("/dev/video") { Ok(Self::Device(written)) } else { Ok(Self::Path(written)) }
    }
}

fn scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once("://")?;
    let is_scheme = scheme.len() <= LONGEST_SCHEME && scheme.starts_with(|c: char| c.is_ascii_alphabetic());
    let of_scheme = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    (is_scheme && scheme.chars().all(of_scheme)).then_some(scheme)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_is_told_by_how_it_is_written() {
        let of = |text: &'static str| Input::of(Path::new(text)).unwrap();
        assert_eq!(of("-"), Input::Stdin);
        assert_eq!(of("rtsp://u:p@camera/1"), Input::Url("rtsp://u:p@camera/1"));
        assert_eq!(of("HTTP://camera"), Input::Url("HTTP://camera"));
        assert_eq!(of("${CAMERA}"), Input::Url("${CAMERA}"));
        assert_eq!(of("/dev/video2"), Input::Device(Path::new("/dev/video2")));
        for path in ["photos", "./-", "a/**/*.jpg", "/home/ada/a.mp4", "odd name://x"] {
            assert_eq!(of(path), Input::Path(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn a_strange_scheme_is_refused_without_its_password() {
        let error = Input::of(Path::new("gopher://ada:secret@camera")).unwrap_err().to_string();
        assert!(error.contains("`gopher`") && error.contains("rtsp, rtsps") && !error.contains("secret"), "{error}");
    }
}
