//! What `--input` names besides a path.

use std::path::Path;
use std::sync::OnceLock;

use anyhow::Context as _;
use causeway_pipelines::{CaptureOptions, Input, StageSpec};
use percent_encoding::percent_decode_str;

/// The variable that carries a password to the stages: every user of a machine can read the arguments of a process, but not
/// what it has in its environment.
const PASSWORD: &str = "CAUSEWAY_INPUT_PASSWORD";

/// The password out of `--input`, of which there is one.
static GIVEN: OnceLock<String> = OnceLock::new();

/// What a source has in its environment beside ours.
pub(crate) fn environment() -> Option<(&'static str, &'static str)> {
    GIVEN.get().map(|password| (PASSWORD, &password[..]))
}

/// Whether a password stands in a URL, where a variable could.
pub(crate) fn has_password(url: &str) -> bool {
    split_at_password(url).is_some_and(|(_, password, _)| !password.contains("${"))
}

/// A URL whose password is in the environment instead.
pub(crate) fn hide_password(url: &str) -> anyhow::Result<String> {
    let Some((before, password, behind)) = split_at_password(url) else { return Ok(url.into()) };
    if !has_password(url) {
        return Ok(url.into());
    }
    let decoded =
        percent_decode_str(password).decode_utf8().context("cannot use the password in --input: it is no UTF-8")?;
    let _ = GIVEN.set(decoded.into_owned());
    Ok(format!("{before}${{{PASSWORD}}}{behind}"))
}

/// (up to the `:` before it, the password, from the `@` behind it)
fn split_at_password(url: &str) -> Option<(&str, &str, &str)> {
    let begin = url.find("://")? + 3;
    let authority = url[begin..].find(['/', '?', '#']).map_or(url.len(), |length| begin + length);
    let at = begin + url[begin..authority].rfind('@')?;
    let colon = begin + url[begin..at].find(':')?;
    Some((&url[..=colon], &url[colon + 1..at], &url[at..]))
}

/// Whether a stage reads standard input.
pub(crate) fn reads_stdin(stage: &StageSpec) -> bool {
    let options = || stage.options::<CaptureOptions>().ok();
    let input = (stage.uses == "capture").then(options).flatten().and_then(|options| options.input);
    input.is_some_and(|input| Input::of(Path::new(&input)) == Ok(Input::Stdin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_found() {
        let url = "rtsp://ada:p%40ss@camera:554/s?x=a:b@c";
        assert_eq!(split_at_password(url), Some(("rtsp://ada:", "p%40ss", "@camera:554/s?x=a:b@c")));
        for url in ["rtsp://camera:554/a:b@c", "rtsp://ada@camera/", "${CAMERA}"] {
            assert_eq!(split_at_password(url), None, "{url}");
        }
    }
}
