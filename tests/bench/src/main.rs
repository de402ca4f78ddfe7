//! `./dev bench`: how close the pipeline is to what the machine can do, beside Python workers on Redis lists and on JetStream.
//!
//! docs/benchmark.md says what each contender is and how the table is read.

mod child;
mod faces;
mod figures;
mod in_process;
mod latency;
mod machine;
mod ours;
mod peers;
mod place;
mod plumbing;
mod rounds;
mod server_rate;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use crate::figures::Figures;
use crate::place::Place;

/// Measures throughput and latency of the pipelines on this machine; takes about 15 minutes.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Args {
    /// A smoke test of a few seconds a contender: its figures mean nothing
    #[arg(long)]
    quick: bool,
    /// Only this workload
    #[arg(long, value_enum)]
    only: Option<Workload>,
    /// Print the figures as one JSON object on the last line
    #[arg(long)]
    json: bool,
    /// Measure although the machine is under other load; the table says so
    #[arg(long)]
    anyway: bool,
    /// Rounds; each runs every contender once, every other one backwards
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// What a round runs in a process of its own
    #[arg(long, hide = true, value_name = "FILE")]
    child: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Workload {
    /// Photos with faces: the model dominates
    Faces,
    /// The same stages without a model: the runtime dominates
    Plumbing,
}

impl Args {
    fn wants(&self, workload: Workload) -> bool {
        self.only.is_none_or(|only| only == workload)
    }

    fn rounds(&self) -> usize {
        if self.quick { 1 } else { self.rounds as usize }
    }
}

// One thread: children end with the thread that started them, and the machine's cores are for those who are measured.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    let result = match &args.child {
        Some(task) => child::run(task),
        None => run(&args).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> anyhow::Result<()> {
    let load = machine::quiet(args.anyway || args.quick)?;
    let place = Place::find()?;
    let mut figures = Figures::new(load, args.quick);
    if args.wants(Workload::Faces) {
        faces::measure(&place, args, &mut figures).await?;
    }
    if args.wants(Workload::Plumbing) {
        plumbing::measure(&place, args, &mut figures).await?;
    }
    println!("{}", table::of(&figures));
    if args.json {
        println!("{}", figures.json());
    }
    Ok(())
}
