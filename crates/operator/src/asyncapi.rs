//! `causeway asyncapi`: what other programs read of a pipeline, as a document that their tools understand.
//! (<https://www.asyncapi.com/docs/reference/specification/v3.0.0>)

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use causeway_bus::names;
use causeway_pipelines::Pipeline;
use causeway_schemas::{DeadLetter, Empty, Message as _, Receipt, json_schema};
use serde_json::{Map, Value, json};

use crate::cli::PipelineArgs;
use crate::terminal::print_line;

/// The version of the document's format.
const ASYNCAPI: &str = "3.0.0";
/// CloudEvents, version 1.0, in binary mode: what each header is. (<https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/nats-protocol-binding.md>)
const EVENT_HEADERS: [(&str, &str); 7] = [
    ("ce-specversion", "The version of CloudEvents: 1.0"),
    ("ce-type", "What it is, with its version"),
    ("ce-source", "Where it was captured: /PIPELINE/SITE/SOURCE"),
    ("ce-id", "Its id: the same however often it comes"),
    ("ce-time", "When it was made, RFC 3339"),
    ("ce-subject", "The id of the captured item that it belongs to"),
    ("Content-Type", "application/json"),
];

/// The arguments of `asyncapi`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  causeway asyncapi pipelines/faces.toml --out faces.asyncapi.json\n  causeway asyncapi | jq -r '.channels[].address'"
)]
pub(crate) struct AsyncApiArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// Write to this file instead of stdout
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(crate) fn run(args: &AsyncApiArgs) -> anyhow::Result<ExitCode> {
    let document = document(&args.pipeline.load()?);
    match &args.out {
        Some(file) => {
            std::fs::write(file, format!("{document:#}\n"))
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        None => print_line(format_args!("{document:#}"))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What a reader may subscribe.
struct Channel<'a> {
    /// The second token of its subjects.
    link: &'a str,
    /// The noun of its messages.
    noun: &'a str,
    about: String,
    /// Tokens behind the source.
    more: &'static [&'static str],
}

fn channels(pipeline: &Pipeline) -> Vec<Channel<'_>> {
    let finals = pipeline.stages.iter().filter(|stage| pipeline.is_final(&stage.name));
    let finals = finals.map(|stage| Channel {
        link: &stage.link,
        noun: stage.gives,
        about: format!("What [stage.{}] gives", stage.name),
        more: &["id"],
    });
    let ends = [
        (names::EMPTY, Empty::NOUN, "Items that rightly gave nothing, with the reason", &["id"][..]),
        (names::DEAD, DeadLetter::NOUN, "Messages that could not be handled, whole", &["stage", "id"][..]),
    ];
    let receipt =
        (names::RECEIPT, Receipt::NOUN, "Says at other sites that a message was set aside", &["stage", "id"][..]);
    let ends = ends.into_iter().chain(pipeline.is_split().then_some(receipt));
    let ends = ends.map(|(link, noun, about, more)| Channel { link, noun, about: about.into(), more });
    finals.chain(ends).collect()
}

fn document(pipeline: &Pipeline) -> Value {
    let (mut all, mut operations, mut messages) = (Map::new(), Map::new(), Map::new());
    for channel in channels(pipeline) {
        let tokens: Vec<String> =
            ["site", "source"].iter().chain(channel.more).map(|name| format!("{{{name}}}")).collect();
        let about = |name: &str| match name {
            "site" => "The site where the item was captured",
            "source" => "The source that captured it, percent-encoded with `=` in place of `%`",
            "stage" => "The stage that set it aside",
            _ => "The id of the message",
        };
        let parameters = ["site", "source"]
            .iter()
            .chain(channel.more)
            .map(|&name| (name.to_owned(), json!({ "description": about(name) })));
        let parameters: Map<String, Value> = parameters.collect();
        all.insert(
            channel.link.to_owned(),
            json!({
                "address": format!("{}.{}.{}", pipeline.name, channel.link, tokens.join(".")),
                "description": channel.about,
                "parameters": parameters,
                "messages": { (channel.noun): { "$ref": format!("#/components/messages/{}", channel.noun) } },
            }),
        );
        operations.insert(format!("read-{}", channel.link), json!({
            "action": "receive",
            "summary": format!("Subscribe {}; what was stored before is read from the stream", names::link(&pipeline.name, channel.link)),
            "channel": { "$ref": format!("#/channels/{}", channel.link) },
        }));
        messages.insert(
            channel.noun.to_owned(),
            json!({
                "contentType": "application/json",
                "headers": headers(),
                "payload": json_schema(channel.noun),
            }),
        );
    }
    let servers = pipeline.sites.iter().filter_map(|site| {
        let (protocol, host) = site.address.as_deref()?.split_once("://")?;
        // Who signs in, and with what, is nobody's business.
        let host = host.rsplit('@').next()?;
        Some((site.name.clone(), json!({ "host": host, "protocol": protocol })))
    });
    let servers: Map<String, Value> = servers.collect();
    let mut document = json!({
        "asyncapi": ASYNCAPI,
        "info": {
            "title": pipeline.name,
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Results of a Causeway pipeline: JSON on NATS subjects, with the headers of CloudEvents.",
        },
        "defaultContentType": "application/json",
        "channels": all,
        "operations": operations,
        "components": { "messages": messages },
    });
    if !servers.is_empty() {
        document["servers"] = servers.into();
    }
    document
}

fn headers() -> Value {
    let properties =
        EVENT_HEADERS.map(|(name, about)| (name.to_owned(), json!({ "type": "string", "description": about })));
    json!({ "type": "object", "properties": properties.into_iter().collect::<Map<_, _>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_is_there_with_what_it_holds() {
        let text = "pipeline = \"faces\"\n[stage.capture]\n[stage.preprocess]\nfrom = \"capture\"\nmodel = \"yunet\"\n[stage.extract]\nfrom = \"preprocess\"\nmodel = \"sface\"\n[stage.classify]\nfrom = \"extract\"\n";
        let document = document(&Pipeline::of_bytes(text.as_bytes(), &[]).unwrap());
        let channels = document["channels"].as_object().unwrap();
        assert_eq!(channels.keys().collect::<Vec<_>>(), ["dead", "decision", "empty"]);
        assert_eq!(channels["decision"]["address"], "faces.decision.{site}.{source}.{id}");
        assert_eq!(channels["dead"]["address"], "faces.dead.{site}.{source}.{stage}.{id}");
        let decision = &document["components"]["messages"]["decision"]["payload"];
        assert!(decision["properties"]["label"].is_object(), "{decision:#}");
        assert!(decision["properties"]["score"]["description"].as_str().unwrap().contains("cosine"), "{decision:#}");
    }

    #[test]
    fn a_server_is_named_without_who_signs_in() {
        let text = "pipeline = \"faces\"\n[site.edge]\naddress = \"tls://ann:hush@hub.example:4222\"\nhub = true\n[stage.capture]\nsite = \"edge\"\n";
        let document = document(&Pipeline::of_bytes(text.as_bytes(), &[]).unwrap());
        assert_eq!(document["servers"]["edge"], json!({ "host": "hub.example:4222", "protocol": "tls" }));
    }
}
