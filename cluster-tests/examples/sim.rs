//! Sweeps seeds of the simulation, or shows one of them:
//! `cargo run --release -p cluster-tests --example sim -- --seeds 1000`,
//! `… -- --reproduce 17`, `… -- --seeds 1000 --mistake NoRound`.

use std::process::ExitCode;

use cluster_tests::sim::mistakes::Mistake;
use cluster_tests::sim::sweep::sweep;
use cluster_tests::sim::world::World;
use cluster_tests::sim::{Options, run};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u64>().ok();
    match words[..] {
        ["--seeds", count] if number(count).is_some() => seeds(0, number(count).unwrap_or(0), None),
        ["--seeds", count, "--mistake", mistake]
            if number(count).is_some() && planted(mistake).is_some() =>
        {
            seeds(0, number(count).unwrap_or(0), planted(mistake))
        }
        ["--seeds", count, "--from", first]
            if number(count).is_some() && number(first).is_some() =>
        {
            seeds(number(first).unwrap_or(0), number(count).unwrap_or(0), None)
        }
        ["--reproduce", seed] if number(seed).is_some() => reproduce(number(seed).unwrap_or(0)),
        _ => {
            eprintln!("usage: sim --seeds COUNT [--from SEED | --mistake NAME] | --reproduce SEED");
            ExitCode::from(2)
        }
    }
}

fn planted(name: &str) -> Option<Mistake> {
    let mut all = Mistake::ALL.into_iter();
    all.find(|mistake| format!("{mistake:?}") == name)
}

fn seeds(first: u64, count: u64, mistake: Option<Mistake>) -> ExitCode {
    let options = Options {
        mistake,
        ..Options::default()
    };
    let swept = sweep(first, count, &options, true);
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

fn reproduce(seed: u64) -> ExitCode {
    let options = Options::default();
    let mut world = World::new(seed, &options);
    world.run(u64::MAX);
    for entry in &world.trace.entries {
        println!("{entry}");
    }
    match run(seed, &options) {
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
