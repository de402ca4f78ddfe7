use anyhow::bail;
use causeway_pipelines::{Pipeline, did_you_mean};

use super::letters::Letter;
use crate::when::{Span, when};

/// Which dead letters: the same in every command.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Filters {
    /// Only those that this stage set aside
    #[arg(long, value_name = "STAGE")]
    pub(crate) stage: Option<String>,
    /// Only those with this reason
    #[arg(long, value_name = "REASON")]
    pub(crate) reason: Option<String>,
    /// Only those set aside since then: an age like 2h, or a time like 2026-11-27T08:00:00Z
    #[arg(long, value_name = "WHEN", value_parser = when)]
    pub(crate) since: Option<u64>,
    /// Only those set aside before then
    #[arg(long, value_name = "WHEN", value_parser = when)]
    pub(crate) until: Option<u64>,
}

impl Filters {
    /// An error where nothing could pass: a stage that is not there, an end before the beginning.
    pub(crate) fn check(&self, pipeline: &Pipeline) -> anyhow::Result<()> {
        self.span().check("--since", "--until")?;
        check_stage(pipeline, self.stage.as_deref())
    }

    pub(crate) fn pass(&self, letter: &Letter) -> bool {
        self.stage.as_ref().is_none_or(|stage| *stage == letter.letter.stage)
            && self.reason.as_ref().is_none_or(|reason| *reason == letter.letter.reason)
            && self.span().has(letter.letter.at)
    }

    /// Whether any is given.
    pub(crate) fn is_any(&self) -> bool {
        self.stage.is_some() || self.reason.is_some() || self.since.is_some() || self.until.is_some()
    }

    fn span(&self) -> Span {
        Span { from: self.since, to: self.until }
    }
}

pub(crate) fn check_stage(pipeline: &Pipeline, stage: Option<&str>) -> anyhow::Result<()> {
    let Some(stage) = stage.filter(|stage| pipeline.stage(stage).is_none()) else { return Ok(()) };
    let names: Vec<_> = pipeline.stages.iter().map(|stage| stage.name.as_str()).collect();
    let hint = did_you_mean(stage, names.iter().copied()).map_or(String::new(), |hint| format!("{hint} "));
    bail!("cannot find [stage.{stage}] in {}: {hint}It has {}", pipeline.file.display(), names.join(", "))
}

/// Which dead letters something is done to: ids, or all that pass the filters. Never all by accident.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Selection {
    /// Ids, or as much of each one's beginning as no other has
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// All of them
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    #[command(flatten)]
    pub(crate) filters: Filters,
}

impl Selection {
    pub(crate) fn check(&self, pipeline: &Pipeline, verb: &str) -> anyhow::Result<()> {
        if self.ids.is_empty() && !self.all && !self.filters.is_any() {
            bail!(
                "cannot tell which dead letters to {verb}: name ids, or say --stage, --reason, --since, --until or --all; \
                 `causeway dlq ls` lists them"
            );
        }
        self.filters.check(pipeline)
    }

    /// Whether a letter may be meant; which one an id means, `resolve` says.
    pub(crate) fn may_mean(&self, letter: &Letter) -> bool {
        self.filters.pass(letter) && (self.ids.is_empty() || self.ids.iter().any(|id| letter.id.starts_with(id)))
    }

    /// Those that are meant, out of all that may be: every id means one.
    pub(crate) fn resolve(&self, found: Vec<Letter>) -> anyhow::Result<Vec<Letter>> {
        for id in &self.ids {
            let meant: Vec<_> = found.iter().filter(|letter| letter.id.starts_with(id)).collect();
            match meant.len() {
                0 => bail!("cannot find a dead letter whose id begins with `{id}`: `causeway dlq ls` lists them"),
                1 => {}
                _ => bail!("{}", super::ambiguous(id, &meant)),
            }
        }
        Ok(found)
    }
}
