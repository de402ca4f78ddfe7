//! The table for a person: each figure beside what it is measured against, with its aim.

use std::fmt::Write as _;

use comfy_table::{ContentArrangement, Table, presets};

use crate::figures::Figures;
use crate::machine::{cores, processor};
use crate::plumbing::HOPS;
use crate::rounds::{Rounds, Spread};

/// Most that a stage without a model may have in memory, and that one with a model may have more than the bare models, MB.
const RSS_AIM: f64 = 25.0;
/// Most that the tail may be behind the one in process, ms.
const TAIL_AIM: f64 = 5.0;

/// Everything, as text.
pub(crate) fn of(figures: &Figures) -> String {
    let mut text =
        format!("{} cores, {}; others used {:.0} % of it before", cores(), processor(), 100.0 * figures.others);
    if figures.quick {
        text += "\nA smoke test: one short round, the figures mean nothing.";
    }
    for note in &figures.notes {
        let _ = write!(text, "\n{note}");
    }
    if figures.photos > 0 {
        let (photos, faces) = (figures.photos, figures.faces);
        let _ = write!(
            text,
            "\n\nfaces: {photos} photos with {faces} faces a round. L0, sessions × threads: {}",
            figures.layout
        );
        let names = ["L0", "L1", "ours", "ours, max = 1", "Redis lists", "nats-py", "nats-py, windowed"];
        let _ = write!(text, "\n{}", rates("photos/s", &figures.face_rounds, &names));
        let _ = write!(text, "\n{}", face_ratios(figures));
        let _ = write!(text, "\n{}", loads(figures));
        let _ = write!(text, "\nfaces, each process at the end of a round:\n{}", face_usages(figures));
    }
    if figures.idle.is_some() {
        let names = ["ours", "Redis lists", "nats-py", "nats-py, windowed", "server"];
        let names: Vec<String> =
            ["2 KB", "40 KB"].iter().flat_map(|size| names.map(|who| format!("{who} {size}"))).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let _ = write!(
            text,
            "\n\nplumbing: {HOPS} hops a message\n{}",
            rates("messages/s", &figures.plumbing_rounds, &names)
        );
        let _ = write!(text, "\n{}", plumbing_ratios(figures));
        let _ = write!(text, "\nplumbing at 2 KB, each process at the end of a round:\n{}", plumbing_usages(figures));
    }
    text
}

fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled).set_header(head);
    table
}

fn rates(unit: &str, rounds: &Rounds, names: &[&str]) -> Table {
    let mut table = table(&["", unit, "least..most", "rounds"]);
    for &who in names {
        if let Some(spread) = rounds.per_s(who) {
            let Spread { median, least, most } = spread;
            table.add_row([
                who.to_owned(),
                format!("{median:.1}"),
                format!("{least:.1}..{most:.1}"),
                rounds.of(who).len().to_string(),
            ]);
        }
    }
    table
}

/// A row of a ratio: its median and spread, and whether it reaches its aim.
fn ratio_row(table: &mut Table, what: &str, ratio: Option<Spread>, aim: Option<f64>) {
    let Some(Spread { median, least, most }) = ratio else { return };
    let aimed = aim.map_or(String::new(), |aim| format!("≥ {aim}"));
    let verdict = aim.map_or("", |aim| if median >= aim { "ok" } else { "short" });
    table.add_row([what.to_owned(), format!("{median:.2}"), format!("{least:.2}..{most:.2}"), aimed, verdict.into()]);
}

fn face_ratios(figures: &Figures) -> Table {
    let mut table = table(&["ratio, round by round", "median", "least..most", "aim", ""]);
    let rounds = &figures.face_rounds;
    let mut row = |one: &str, other: &str, aim| {
        ratio_row(&mut table, &format!("{one} ÷ {other}"), rounds.ratio(one, other), aim);
    };
    row("ours", "L1", Some(0.95));
    row("ours, max = 1", "L1", Some(0.88));
    row("L1", "L0", None);
    for peer in ["Redis lists", "nats-py", "nats-py, windowed"] {
        row("ours", peer, None);
        // Nobody beats a peer by more.
        row("L0", peer, None);
    }
    table
}

fn loads(figures: &Figures) -> Table {
    let mut table =
        table(&["load", "photos/s", "ours p50 ms", "p99 ms", "in process p50 ms", "p99 ms", "aim, p99 ms", ""]);
    for load in &figures.loads {
        let aim = load.in_process.p99 + TAIL_AIM;
        let is_aimed = figures.aimed().is_some_and(|aimed| aimed.share.total_cmp(&load.share).is_eq());
        let verdict = if !is_aimed {
            ""
        } else if load.ours.p99 <= aim {
            "ok"
        } else {
            "short"
        };
        table.add_row([
            format!("{:.0} %", 100.0 * load.share),
            format!("{:.1}", load.rate),
            format!("{:.1}", load.ours.p50),
            format!("{:.1}", load.ours.p99),
            format!("{:.1}", load.in_process.p50),
            format!("{:.1}", load.in_process.p99),
            if is_aimed { format!("≤ {aim:.1}") } else { String::new() },
            verdict.into(),
        ]);
    }
    table
}

fn face_usages(figures: &Figures) -> Table {
    let mut table = usage_table("photo");
    for (name, rss, cpu) in figures.face_rounds.usages("ours") {
        let aim = match name.as_str() {
            "broker" | "causeway up" => None,
            stage => Some(RSS_AIM + figures.bare_mb.get(stage).copied().unwrap_or(0.0)),
        };
        usage_row(&mut table, &name, rss, cpu, aim);
    }
    for who in ["L0", "L1"] {
        for (_, rss, cpu) in figures.face_rounds.usages(who) {
            usage_row(&mut table, &format!("{who}, one process"), rss, cpu, None);
        }
    }
    for who in ["Redis lists", "nats-py"] {
        for (name, rss, cpu) in figures.face_rounds.usages(who) {
            usage_row(&mut table, &format!("{who}: {name}"), rss, cpu, None);
        }
    }
    table
}

fn plumbing_usages(figures: &Figures) -> Table {
    let mut table = usage_table("message");
    for (name, rss, cpu) in figures.plumbing_rounds.usages("ours 2 KB") {
        let aim = (!["broker", "causeway up"].contains(&name.as_str())).then_some(RSS_AIM);
        usage_row(&mut table, &name, rss, cpu, aim);
    }
    for who in ["Redis lists 2 KB", "nats-py 2 KB", "server 2 KB"] {
        for (name, rss, cpu) in figures.plumbing_rounds.usages(who) {
            usage_row(&mut table, &format!("{who}: {name}"), rss, cpu, None);
        }
    }
    table
}

fn usage_table(item: &str) -> Table {
    table(&["process", "RSS MB", "aim", "", &format!("ms on a core a {item}")])
}

fn usage_row(table: &mut Table, name: &str, rss: f64, cpu: f64, aim: Option<f64>) {
    let aimed = aim.map_or(String::new(), |aim| format!("≤ {aim:.0}"));
    let verdict = aim.map_or("", |aim| if rss <= aim { "ok" } else { "short" });
    table.add_row([name.to_owned(), format!("{rss:.1}"), aimed, verdict.into(), format!("{cpu:.3}")]);
}

fn plumbing_ratios(figures: &Figures) -> Table {
    let mut table = table(&["ratio, round by round", "median", "least..most", "aim", ""]);
    let rounds = &figures.plumbing_rounds;
    for (size, kb, aims) in
        [("2 KB", 2, [Some(2.5), Some(5.0), None, None]), ("40 KB", 40, [None, None, None, Some(0.8)])]
    {
        let ours = format!("ours {size}");
        for (peer, aim) in ["Redis lists", "nats-py", "nats-py, windowed"].iter().zip(aims) {
            ratio_row(&mut table, &format!("{ours} ÷ {peer}"), rounds.ratio(&ours, &format!("{peer} {size}")), aim);
        }
        let what = format!("{ours} × {HOPS} ÷ server's own publish + pull + ack");
        ratio_row(&mut table, &what, figures.over_server(kb), aims[3]);
    }
    if let (Some(busy), Some(idle)) = (rounds.per_s("ours 2 KB"), figures.idle) {
        let hop = |us: f64| format!("{us:.0} µs");
        let us = |per_s: f64| 1e6 / per_s / HOPS;
        let spread = format!("{}..{}", hop(us(busy.most)), hop(us(busy.least)));
        table.add_row([
            "a hop at 2 KB, at full throughput".into(),
            hop(us(busy.median)),
            spread,
            String::new(),
            String::new(),
        ]);
        let idle_hop = [idle.p50, idle.p99].map(|ms| hop(1e3 * ms / HOPS));
        table.add_row([
            "a hop at 2 KB, latency of an idle pipeline, p50".into(),
            idle_hop[0].clone(),
            format!("p99 {}", idle_hop[1]),
            String::new(),
            String::new(),
        ]);
    }
    table
}
