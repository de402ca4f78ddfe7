use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;

use sha2::{Digest as _, Sha256};

use crate::ManifestError;
use crate::recipe::LabelsSpec;

/// Longest file of labels, bytes: ImageNet-21k has 800 KB.
const MAX_BYTES: u64 = 8 << 20;

/// Longest label, bytes: it is on every decision.
const MAX_LABEL: usize = 256;

impl LabelsSpec {
    /// The labels in the order of the file, once its hash is known to be the right one.
    pub(crate) fn read(&self) -> Result<Vec<String>, ManifestError> {
        let unreadable = |source| ManifestError::Read { path: self.file.clone(), source };
        let wrong = |why: String| ManifestError::Wrong { path: self.file.clone(), why };
        let mut bytes = Vec::new();
        let file = File::open(&self.file).map_err(unreadable)?;
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(wrong(format!("it has more than {MAX_BYTES} bytes")));
        }
        let found = Sha256::digest(&bytes).iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        if found != self.sha256 {
            return Err(wrong(format!("its SHA-256 is {found}, the manifest says {}", self.sha256)));
        }
        Self::of_bytes(bytes).map_err(wrong)
    }

    /// The labels in a file with these bytes, or why there are none. Public for `tests/fuzz`.
    #[doc(hidden)]
    pub fn of_bytes(bytes: Vec<u8>) -> Result<Vec<String>, String> {
        let text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".to_owned())?;
        let labels: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
        match labels.iter().position(|label| label.is_empty() || label.len() > MAX_LABEL) {
            Some(at) => Err(format!("line {} is no label: it is empty or has more than {MAX_LABEL} bytes", at + 1)),
            None if labels.is_empty() => Err("it has no label".into()),
            None => Ok(labels),
        }
    }
}
