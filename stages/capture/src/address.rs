use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use causeway_pipelines::{CaptureOptions, Input};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// Where a video comes from. What is shown of it holds no secret.
#[derive(Clone)]
pub(crate) enum Address {
    /// A file that `ffmpeg` reads.
    File(PathBuf),
    /// A camera of this machine.
    Device(PathBuf),
    /// Standard input.
    Stdin,
    /// A stream on the network.
    Url(Url),
}

/// A URL with what must not be shown of it.
#[derive(Clone)]
pub(crate) struct Url {
    whole: String,
    /// Scheme, host and port: in a path or a query may be a password too.
    shown: String,
    secrets: Vec<String>,
    is_rtsp: bool,
    has_user: bool,
}

/// What is taken for a video, by the file's extension; the bytes are judged when they are read.
const EXTENSIONS: [&str; 17] = [
    "3gp", "asf", "avi", "flv", "m2ts", "m4v", "mkv", "mjpeg", "mjpg", "mov", "mp4", "mpeg", "mpg", "mts", "ts",
    "webm", "wmv",
];

/// Longest file with a password that is read, bytes.
const LONGEST_PASSWORD: u64 = 4096;

/// Stays as it is in the user and password of a URL (RFC 3986, unreserved); everything else is percent-encoded.
const NOT_UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

impl Address {
    /// The video that `options` name, a relative path within `base`; `None` where they name pictures.
    pub(crate) fn of(options: &CaptureOptions, base: &Path) -> anyhow::Result<Option<Self>> {
        let Some(written) = options.input.as_deref() else { return Ok(None) };
        let environment = |name: &str| std::env::var(name).ok();
        let password = options.password_file.as_deref().map(|file| password(&base.join(file))).transpose()?;
        Self::of_written(written, base, password.as_deref(), environment)
    }

    fn of_written(
        written: &Path,
        base: &Path,
        password: Option<&str>,
        environment: impl Fn(&str) -> Option<String>,
    ) -> anyhow::Result<Option<Self>> {
        Ok(match Input::of(written).map_err(|why| anyhow::anyhow!("cannot capture: {why}"))? {
            Input::Stdin => Some(Self::Stdin),
            Input::Device(device) => Some(Self::Device(device.into())),
            Input::Path(path) => {
                let path = base.join(path);
                (is_video(&path) && !path.is_dir() && !is_glob(&path)).then_some(Self::File(path))
            }
            Input::Url(url) => {
                let (expanded, secrets) = expand(url, environment)?;
                match Input::of(Path::new(&expanded)) {
                    Ok(Input::Url(url)) if url.contains("://") => Some(Self::Url(Url::new(url, password, secrets)?)),
                    _ => bail!("cannot capture: what the input's variables hold makes no URL that is read"),
                }
            }
        })
    }

    /// For a person; completes "cannot capture from …".
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::File(path) | Self::Device(path) => path.display().to_string(),
            Self::Stdin => "standard input".into(),
            Self::Url(url) => url.shown.clone(),
        }
    }

    /// A line of `ffmpeg` without what must not be shown.
    pub(crate) fn redact(&self, line: &str) -> String {
        let mut line = line.to_owned();
        if let Self::Url(url) = self {
            for secret in std::iter::once(&url.whole).chain(&url.secrets) {
                line = line.replace(secret, "…");
            }
        }
        without_users(&line)
    }

    /// Whether it has no end and comes at its own pace.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self, Self::Url(_) | Self::Device(_))
    }
}

impl Url {
    fn new(written: &str, password: Option<&str>, mut secrets: Vec<String>) -> anyhow::Result<Self> {
        ensure!(
            !written.chars().any(|c| c.is_control() || c.is_whitespace()),
            "cannot capture from a URL with a space or a control character in it: percent-encode it"
        );
        let (scheme, rest) = written.split_once("://").context("cannot capture: the input is no URL")?;
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        ensure!(!host.is_empty(), "cannot capture: the input is a URL without a host");
        let shown = format!("{scheme}://{host}");
        let user = match (user, password) {
            (Some(user), Some(password)) => {
                let name = user.split(':').next().unwrap_or_default();
                Some(format!("{name}:{}", utf8_percent_encode(password, NOT_UNRESERVED)))
            }
            (None, Some(_)) => bail!(
                "cannot capture from {shown} with a password_file: its URL names no user; write {scheme}://USER@{host}…"
            ),
            (user, None) => user.map(Into::into),
        };
        if let Some(user) = &user {
            let password = user.split_once(':').map_or(&user[..], |(_, password)| password);
            secrets.push(user.clone());
            secrets.push(password.to_owned());
            secrets.push(percent_decode_str(password).decode_utf8_lossy().into_owned());
        }
        if let Some((_, query)) = path.split_once('?') {
            // A short value is no secret, and would blot out half of every line.
            let values = query.split('&').filter_map(|pair| pair.split_once('=').map(|(_, value)| value));
            secrets.extend(values.filter(|value| value.len() >= 4).chain([query]).map(Into::into));
        }
        secrets.retain(|secret| !secret.is_empty());
        // A secret within another would leave the rest of it.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets.dedup();
        let at = user.as_ref().map_or(String::new(), |user| format!("{user}@"));
        // A quote would end the word in the script that carries the URL to `ffmpeg`.
        let whole = format!("{scheme}://{at}{host}{path}").replace('\'', "%27");
        let is_rtsp = scheme.to_ascii_lowercase().starts_with("rtsp");
        Ok(Self { whole, shown, secrets, is_rtsp, has_user: user.is_some() })
    }

    /// All of it: for `ffmpeg` alone.
    pub(crate) fn whole(&self) -> &str {
        &self.whole
    }

    /// Whether its frames come with timestamps to go by. Motion JPEG over HTTP has none, and what is in other streams over HTTP
    /// goes by the sender's start; an HLS playlist's come in bursts and are needed.
    pub(crate) fn is_timed(&self) -> bool {
        let path = self.whole.split(['?', '#']).next().unwrap_or_default();
        self.is_rtsp || path.to_ascii_lowercase().ends_with(".m3u8")
    }

    pub(crate) fn is_rtsp(&self) -> bool {
        self.is_rtsp
    }

    /// Whether every user of this machine could read a password in `ffmpeg`'s arguments.
    pub(crate) fn is_secret(&self) -> bool {
        self.has_user || !self.secrets.is_empty()
    }
}

/// Puts in the variables. One in the user and password is percent-encoded, so that `@` and `/` in it do no harm.
fn expand(url: &str, environment: impl Fn(&str) -> Option<String>) -> anyhow::Result<(String, Vec<String>)> {
    let user = url.split_once("://").map_or(0..0, |(scheme, rest)| {
        let begin = scheme.len() + 3;
        let authority = &rest[..rest.find(['/', '?']).unwrap_or(rest.len())];
        begin..authority.rfind('@').map_or(begin, |at| begin + at)
    });
    let (mut expanded, mut values, mut at) = (String::new(), Vec::new(), 0);
    while let Some(begin) = url[at..].find("${").map(|found| at + found) {
        let end = url[begin..].find('}').map(|found| begin + found);
        let end = end.context("cannot capture: a `${` in the input has no `}`")?;
        let name = &url[begin + 2..end];
        let value = environment(name).with_context(|| {
            format!("cannot capture: the input needs the environment variable {name}, which is not set")
        })?;
        expanded.push_str(&url[at..begin]);
        let encoded =
            if user.contains(&begin) { utf8_percent_encode(&value, NOT_UNRESERVED).to_string() } else { value.clone() };
        expanded.push_str(&encoded);
        // A variable that holds the whole URL is taken apart later.
        if !value.contains("://") {
            values.extend([encoded, value]);
        }
        at = end + 1;
    }
    expanded.push_str(&url[at..]);
    Ok((expanded, values))
}

/// The first line of a file.
fn password(file: &Path) -> anyhow::Result<String> {
    use std::io::Read as _;
    let cannot = || format!("cannot read the password_file {}", file.display());
    let mut text = String::new();
    std::fs::File::open(file)
        .with_context(cannot)?
        .take(LONGEST_PASSWORD)
        .read_to_string(&mut text)
        .with_context(cannot)?;
    let password = text.lines().next().unwrap_or_default();
    ensure!(!password.is_empty(), "{}: its first line is empty", cannot());
    Ok(password.to_owned())
}

/// `scheme://user:password@host` without the user and password.
fn without_users(line: &str) -> String {
    let mut parts = line.split("://");
    let mut clean = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        clean.push_str("://");
        let authority = part.find(['/', ' ', '\'', '"']).unwrap_or(part.len());
        let host = part[..authority].rfind('@').map_or(0, |at| at + 1);
        clean.push_str(&part[host..]);
    }
    clean
}

fn is_video(path: &Path) -> bool {
    let extension = path.extension().and_then(OsStr::to_str);
    extension.is_some_and(|extension| EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(extension)))
}

/// Whether it names no file by itself: what exists is taken by its name, even if a wildcard is in it.
fn is_glob(path: &Path) -> bool {
    !path.exists() && path.to_string_lossy().contains(['*', '?', '[', '{'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(written: &str, password: Option<&str>) -> anyhow::Result<Option<Address>> {
        let environment = |name: &str| match name {
            "PASSWORD" => Some("p@ss/w:rd".to_owned()),
            "CAMERA" => Some("rtsp://ada:hunter22@camera/1".to_owned()),
            _ => None,
        };
        Address::of_written(Path::new(written), Path::new("/base"), password, environment)
    }

    fn url(written: &str, password: Option<&str>) -> Url {
        match of(written, password).unwrap() {
            Some(Address::Url(url)) => url,
            _ => panic!("{written} is no URL"),
        }
    }

    fn error(written: &str, password: Option<&str>) -> String {
        match of(written, password) {
            Ok(_) => panic!("{written} is read"),
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn a_password_comes_from_the_environment_or_a_file() {
        let expected = "rtsp://ada:p%40ss%2Fw%3Ard@camera:554/s?x=1";
        assert_eq!(url("rtsp://ada:${PASSWORD}@camera:554/s?x=1", None).whole, expected);
        assert_eq!(url("rtsp://ada@camera:554/s?x=1", Some("p@ss/w:rd")).whole, expected);
        assert_eq!(url("${CAMERA}", None).whole, "rtsp://ada:hunter22@camera/1");
        assert!(error("rtsp://ada:${NONE}@camera", None).contains("variable NONE, which is not set"));
        assert!(error("rtsp://camera/1", Some("x")).contains("names no user; write rtsp://USER@camera"));
    }

    #[test]
    fn nothing_shown_holds_a_secret() {
        for (written, secrets) in [
            ("rtsp://ada:hunter22@camera:554/s?token=t0k3n", &["hunter22", "t0k3n"][..]),
            ("${CAMERA}", &["hunter22"]),
            ("rtsp://ada:${PASSWORD}@camera/s", &["p@ss/w:rd", "p%40ss%2Fw%3Ard"]),
        ] {
            let address = of(written, None).unwrap().unwrap();
            let Address::Url(url) = &address else { panic!("no URL") };
            let line = format!("Error opening {} at rtsp://ada@camera/x: {}", url.whole, secrets.join(" "));
            let shown = address.redact(&line) + &address.shown();
            for secret in secrets {
                assert!(!shown.contains(secret), "{secret} in {shown}");
            }
            assert!(shown.contains("rtsp://camera"), "{shown}");
        }
    }

    #[test]
    fn videos_are_told_from_pictures() {
        assert!(
            matches!(of("clip.MP4", None).unwrap(), Some(Address::File(path)) if path == Path::new("/base/clip.MP4"))
        );
        assert!(matches!(of("-", None).unwrap(), Some(Address::Stdin)));
        assert!(matches!(of("/dev/video0", None).unwrap(), Some(Address::Device(_))));
        for pictures in ["photos", "a.jpg", "*.mp4"] {
            assert!(of(pictures, None).unwrap().is_none(), "{pictures}");
        }
        assert!(!of("clip.mp4", None).unwrap().unwrap().is_live());
        assert!(of("https://camera/1.mjpg", None).unwrap().unwrap().is_live());
    }
}
