//! What the stand-ins are told, by variables that `causeway up` passes on to its stages.

use anyhow::Context as _;

/// How many messages the source gives, and how long the body of each is on its way to the last stage, bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Script {
    pub(crate) items: u64,
    pub(crate) bytes: usize,
}

/// Messages that are captured.
pub(crate) const ITEMS: &str = "CAUSEWAY_STAND_IN_ITEMS";
/// Bytes of each.
pub(crate) const BYTES: &str = "CAUSEWAY_STAND_IN_BYTES";

impl Script {
    pub(crate) fn read() -> anyhow::Result<Self> {
        let number = |name: &str| -> anyhow::Result<u64> {
            let text = std::env::var(name).with_context(|| format!("cannot read ${name}"))?;
            text.parse().with_context(|| format!("cannot read ${name} = {text}: a whole number"))
        };
        Ok(Self { items: number(ITEMS)?, bytes: usize::try_from(number(BYTES)?)? })
    }
}
