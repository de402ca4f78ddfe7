use causeway_schemas::{Assignment, Crop, Decision, Feature, Frame, Message};
use toml::Spanned;
use toml::de::DeTable;

use crate::fault::{Draft, Findings};
use crate::options::{CaptureOptions, Checked, ClassifyOptions, ClusterOptions, ExtractOptions, PreprocessOptions};
use crate::schema::options_schema;
use crate::written::{read, span_of};

/// What the key `uses` of a stage can be: its name is the binary's, the crate's and the folder's.
#[derive(Debug, Clone, Copy)]
pub struct Use {
    /// As `uses` says it.
    pub name: &'static str,
    /// The noun it takes; none for a source.
    pub takes: Option<&'static str>,
    /// The noun it gives.
    pub gives: &'static str,
    /// Whether it folds: one writer with a changelog.
    pub folds: bool,
    /// The tables that it may read.
    pub tables: &'static [&'static str],
    /// Checks a stage's own keys against its options.
    pub(crate) check: CheckOptions,
    /// The JSON Schema of its options.
    pub(crate) schema: OptionsSchema,
}

/// (the stage's own keys, its name, the findings)
type CheckOptions = fn(&Spanned<DeTable<'_>>, &str, &mut Findings<'_>);

/// The schema of a stage's own keys; what it refers to is put with the generator.
type OptionsSchema = fn(&mut schemars::SchemaGenerator) -> schemars::Schema;

/// Every `uses` that there is.
pub const USES: [Use; 5] = [
    Use {
        name: "capture",
        takes: None,
        gives: Frame::NOUN,
        folds: false,
        tables: &[],
        check: check::<CaptureOptions>,
        schema: options_schema::<CaptureOptions>,
    },
    Use {
        name: "preprocess",
        takes: Some(Frame::NOUN),
        gives: Crop::NOUN,
        folds: false,
        tables: &[],
        check: check::<PreprocessOptions>,
        schema: options_schema::<PreprocessOptions>,
    },
    Use {
        name: "extract",
        takes: Some(Crop::NOUN),
        gives: Feature::NOUN,
        folds: false,
        tables: &[],
        check: check::<ExtractOptions>,
        schema: options_schema::<ExtractOptions>,
    },
    Use {
        name: "classify",
        takes: Some(Feature::NOUN),
        gives: Decision::NOUN,
        folds: false,
        tables: &["people"],
        check: check::<ClassifyOptions>,
        schema: options_schema::<ClassifyOptions>,
    },
    Use {
        name: "cluster",
        takes: Some(Feature::NOUN),
        gives: Assignment::NOUN,
        folds: true,
        tables: &[],
        check: check::<ClusterOptions>,
        schema: options_schema::<ClusterOptions>,
    },
];

/// The keys of every stage, whatever it uses.
pub(crate) const STAGE_KEYS: [&str; 10] = [
    "uses",
    "from",
    "site",
    "may_move_to",
    "workers",
    "batch",
    "link_bytes",
    "max_process_ms",
    "quarantine_bytes",
    "emits",
];

fn check<O: Checked>(own: &Spanned<DeTable<'_>>, stage: &str, findings: &mut Findings<'_>) {
    let Some(options) = read::<O>(own, Some(stage), &STAGE_KEYS, findings) else { return };
    for senseless in options.value.check() {
        if options.left_out.iter().any(|key| key == senseless.key) {
            continue;
        }
        let place = span_of(own.get_ref(), senseless.key).unwrap_or_else(|| own.span());
        let draft = Draft::new(senseless.message).stage(Some(stage)).key(senseless.key);
        findings.push(place, if senseless.absent { draft.of_absence() } else { draft });
    }
}
