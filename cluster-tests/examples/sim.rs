//! Sweeps seeds of the simulation, or shows one of them:
//! `cargo run --release -p cluster-tests --example sim -- --seeds 1000`,
//! `… -- --reproduce 17`, `… -- --seeds 1000 --mistake NoRound`.

use std::process::ExitCode;

use cluster_tests::sim::mistakes::Mistake;
use cluster_tests::sim::sweep::sweep;
use cluster_tests::sim::world::World;
use cluster_tests::sim::{Options, run};

/// What to run.
#[derive(Default)]
struct Wanted {
    seeds: Option<u64>,
    first: u64,
    reproduce: Option<u64>,
    options: Options,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match wanted(&arguments) {
        Some(Wanted {
            reproduce: Some(seed),
            options,
            ..
        }) => reproduce(seed, &options),
        Some(Wanted {
            seeds: Some(count),
            first,
            options,
            ..
        }) => seeds(first, count, &options),
        _ => {
            eprintln!(
                "usage: sim (--seeds COUNT [--from SEED] | --reproduce SEED) \
                 [--nodes COUNT] [--gateways COUNT] [--mistake NAME]"
            );
            ExitCode::from(2)
        }
    }
}

fn wanted(arguments: &[String]) -> Option<Wanted> {
    let mut wanted = Wanted::default();
    for pair in arguments.chunks(2) {
        let [name, value] = pair else {
            return None;
        };
        match name.as_str() {
            "--seeds" => wanted.seeds = Some(value.parse().ok()?),
            "--from" => wanted.first = value.parse().ok()?,
            "--reproduce" => wanted.reproduce = Some(value.parse().ok()?),
            "--nodes" => wanted.options.nodes = value.parse().ok()?,
            "--gateways" => wanted.options.gateways = value.parse().ok()?,
            "--mistake" => wanted.options.mistake = Some(planted(value)?),
            _ => return None,
        }
    }
    Some(wanted)
}

fn planted(name: &str) -> Option<Mistake> {
    let mut all = Mistake::ALL.into_iter();
    all.find(|mistake| format!("{mistake:?}") == name)
}

fn seeds(first: u64, count: u64, options: &Options) -> ExitCode {
    let swept = sweep(first, count, options, true);
    for (_, report) in &swept.failures {
        println!("{report}\n");
    }
    println!(
        "{} seeds in {:.1} s: {:.1} per second, {} failed",
        swept.seeds,
        swept.took.as_secs_f64(),
        swept.rate(),
        swept.failures.len()
    );
    if swept.failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        let failed: Vec<String> = swept.failures.iter().map(|f| f.0.to_string()).collect();
        println!("failed: {}", failed.join(" "));
        ExitCode::FAILURE
    }
}

fn reproduce(seed: u64, options: &Options) -> ExitCode {
    let mut world = World::new(seed, options);
    world.run(u64::MAX);
    for entry in &world.trace.entries {
        println!("{entry}");
    }
    match run(seed, options) {
        Ok(()) => {
            println!("seed {seed} ({:?}) keeps every promise", world.profile());
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("{failure}");
            ExitCode::FAILURE
        }
    }
}
