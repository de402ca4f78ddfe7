//! What the stand-ins are told, by variables that `causeway up` passes on to its stages.

use std::time::Duration;

use anyhow::{Context as _, bail};
use causeway_schemas::Capture;

/// Messages that are captured.
pub const ITEMS: &str = "CAUSEWAY_STAND_IN_ITEMS";
/// Bytes of each.
pub const BYTES: &str = "CAUSEWAY_STAND_IN_BYTES";
/// Whether it is a camera, which goes on with new messages when it is started again: 1; else a folder, which begins anew.
pub const CAMERA: &str = "CAUSEWAY_STAND_IN_CAMERA";
/// What goes wrong, and where: `preprocess/17=abort,cluster/4=hang`; the number is that of the captured message.
pub const POISON: &str = "CAUSEWAY_STAND_IN_POISON";
/// How long a message takes a stage, ms: `classify=5`.
pub const SLOW: &str = "CAUSEWAY_STAND_IN_SLOW";

/// What the source gives: how many messages, and how long the body of each is on its way to the last stage, bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Script {
    pub(crate) items: u64,
    pub(crate) bytes: usize,
    pub(crate) is_camera: bool,
}

impl Script {
    pub(crate) fn read() -> anyhow::Result<Self> {
        let number = |name: &str| -> anyhow::Result<u64> {
            let text = std::env::var(name).with_context(|| format!("cannot read ${name}"))?;
            text.parse().with_context(|| format!("cannot read ${name} = {text}: a whole number"))
        };
        let is_camera = std::env::var(CAMERA).is_ok_and(|value| value == "1");
        Ok(Self { items: number(ITEMS)?, bytes: usize::try_from(number(BYTES)?)?, is_camera })
    }
}

/// How a stage misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Poison {
    Abort,
    Hang,
    Memory,
    TooMuch,
    Panic,
}

/// How a stage behaves.
#[derive(Debug, Clone, Default)]
pub(crate) struct Manners {
    poison: Vec<(u64, Poison)>,
    slow: Duration,
}

/// Outputs of one input that nobody takes.
const TOO_MANY: usize = 20_000;
/// What memory is taken by, and how much at most where nothing stops it: then it is as if the kernel had.
const BLOCK: usize = 64 << 20;
const MOST: usize = 16 << 30;

impl Manners {
    /// Those of `stage`.
    pub(crate) fn read(stage: &str) -> anyhow::Result<Self> {
        let mut manners = Self::default();
        for written in std::env::var(POISON).unwrap_or_default().split(',').filter(|text| !text.is_empty()) {
            let parts = written.split_once('=').and_then(|(place, how)| Some((place.split_once('/')?, how)));
            let Some(((at, number), how)) = parts else { bail!("cannot read ${POISON}: {written}: STAGE/NUMBER=HOW") };
            let poison = match how {
                "abort" => Poison::Abort,
                "hang" => Poison::Hang,
                "memory" => Poison::Memory,
                "too-much" => Poison::TooMuch,
                "panic" => Poison::Panic,
                other => bail!("cannot read ${POISON}: {other}: abort, hang, memory, too-much or panic"),
            };
            if at == stage {
                manners
                    .poison
                    .push((number.parse().with_context(|| format!("cannot read ${POISON}: {written}"))?, poison));
            }
        }
        for written in std::env::var(SLOW).unwrap_or_default().split(',').filter(|text| !text.is_empty()) {
            let Some((at, ms)) = written.split_once('=') else { bail!("cannot read ${SLOW}: {written}: STAGE=MS") };
            if at == stage {
                manners.slow = Duration::from_secs_f64(ms.parse::<f64>()? / 1000.0);
            }
        }
        Ok(manners)
    }

    /// Does what is done at a message, and says how many outputs it gives.
    pub(crate) fn at(&self, capture: &Capture) -> usize {
        if !self.slow.is_zero() {
            std::thread::sleep(self.slow);
            // As a library may: it must not get into the answers of a quarantine.
            println!("message {} took {:?}", capture.sequence, self.slow);
        }
        let Some((_, poison)) = self.poison.iter().find(|(number, _)| *number == capture.sequence) else { return 1 };
        match poison {
            Poison::Abort => std::process::abort(),
            Poison::Hang => loop {
                std::hint::spin_loop();
            },
            Poison::Memory => {
                let blocks: Vec<Vec<u8>> = (0..MOST / BLOCK).map(|_| vec![0; BLOCK]).collect();
                eprintln!("took {} blocks of memory; nobody stopped it", blocks.len());
                std::process::abort()
            }
            Poison::TooMuch => TOO_MANY,
            Poison::Panic => panic!("message {} is not to its taste", capture.sequence),
        }
    }
}
