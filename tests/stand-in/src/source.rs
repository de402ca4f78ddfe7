use std::time::{Duration, Instant};

use causeway_pipelines::CaptureOptions;
use causeway_schemas::{Capture as Where, Frame, Id};
use causeway_stage::{Captured, Context, Source, now_ns};

use crate::script::Script;

/// Gives as many frames as the script says, each of zeros, at `rate` a second where the pipeline names one.
pub(crate) struct Capture {
    source: String,
    script: Script,
    epoch: u64,
    given: u64,
    period: Option<Duration>,
    began: Instant,
}

impl Source for Capture {
    const NAME: &'static str = "capture";
    type Options = CaptureOptions;
    type Output = Frame;

    fn new(options: CaptureOptions, ctx: &Context) -> anyhow::Result<Self> {
        let period = options.rate.map(|rate| Duration::from_secs_f64(1.0 / rate));
        let script = Script::read()?;
        let epoch = if script.is_camera { ctx.epoch() } else { 0 };
        Ok(Self { source: ctx.source().into(), script, epoch, given: 0, period, began: Instant::now() })
    }

    fn next(&mut self) -> Option<Captured<Frame>> {
        if self.given == self.script.items {
            return None;
        }
        let sequence = self.given;
        self.given += 1;
        if let Some(period) = self.period {
            let due = self.began + period * u32::try_from(sequence).unwrap_or(u32::MAX);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        let epoch = self.epoch;
        let item = if epoch == 0 { sequence.to_string() } else { format!("{epoch}-{sequence}") };
        let id = Id::captured(&self.source, &item);
        let capture = Where { source: self.source.clone(), item, epoch, sequence, captured_at: now_ns() };
        Some(Captured { id, repeats: true, message: Ok(Frame { capture, image: vec![0; self.script.bytes] }) })
    }
}
