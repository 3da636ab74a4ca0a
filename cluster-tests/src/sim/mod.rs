//! The simulation: all pure cores of a cluster in one virtual-time world, with
//! faults, and the same for the same seed to the last bit.
//!
//! ```text
//!   clients, publishers ──▶ Gateway ──▶ bus ──▶ Node ◀──▶ gossip ◀──▶ Node
//!     (workload)            discovery    (network)  ingress      │
//!                           edge                    shards       └─ agreement:
//!                           workers: hub, fan-out   outbound        a model of Raft
//!                  └──────────────── facts (trace) ────────────────▶ invariants
//! ```
//!
//! The [`world`] holds a queue of events and draws everything that is left to
//! chance from the seed: what goes wrong ([`faults`]), how long messages take
//! ([`network`]), how wrong clocks are ([`clock`]), what clients do
//! ([`workload`]). [`node`] and [`gateway`] drive the cores in the way the
//! shells do, with encoded bytes on the wire. What happens is written down as
//! facts ([`trace`]), which [`crate::invariants`] judge when the run is over.
//!
//! A run has two parts. First there are faults. Then all of them end, and the
//! cluster has ten seconds to heal, from when every process runs; then each
//! channel gets a probe, which must reach everyone.
//!
//! Raft is a model, [`agreement`]; gossip is the real one. [`mistakes`] are
//! planted to see that they are found.

pub mod agreement;
pub mod clock;
pub mod faults;
pub mod gateway;
pub mod mistakes;
pub mod network;
pub mod node;
pub mod random;
pub mod sweep;
pub mod trace;
pub mod worker;
pub mod workload;
pub mod world;

use std::fmt;

use crate::invariants::{self, Violation};
use faults::Profile;
use mistakes::Mistake;
use trace::{Entry, Trace};
use world::World;

/// Lines of the trace that a report shows.
const LINES: usize = 40;

/// What a world is made of.
#[derive(Debug, Clone)]
pub struct Options {
    /// Nodes.
    pub nodes: u8,
    /// Gateways.
    pub gateways: u8,
    /// What is done wrong on purpose.
    pub mistake: Option<Mistake>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 3,
            gateways: 2,
            mistake: None,
        }
    }
}

/// A run that broke a promise.
#[derive(Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// Of what its world was made.
    pub options: Options,
    /// Which faults it had.
    pub profile: Profile,
    /// Which promise.
    pub promise: &'static str,
    /// In which step.
    pub step: u64,
    /// How.
    pub what: String,
    /// What each process was up to then.
    pub states: Vec<String>,
    /// What happened before.
    pub before: Vec<Entry>,
}

/// Runs the world of a seed and judges it.
///
/// # Errors
/// The first promise that was broken.
pub fn run(seed: u64, options: &Options) -> Result<(), Box<Failure>> {
    let mut world = World::new(seed, options);
    world.run(u64::MAX);
    match judge(&world.trace) {
        Ok(()) => Ok(()),
        Err((promise, violation)) => Err(Box::new(report(seed, options, promise, violation))),
    }
}

/// The promise that a trace breaks first.
fn judge(trace: &Trace) -> Result<(), (&'static str, Violation)> {
    let broken = invariants::ALL.iter().filter_map(|(promise, check)| {
        let violation = check(trace).err()?;
        Some((*promise, violation))
    });
    match broken.min_by_key(|(_, violation)| violation.entry) {
        None => Ok(()),
        Some(broken) => Err(broken),
    }
}

/// Runs the world once more, up to the step that broke the promise.
fn report(seed: u64, options: &Options, promise: &'static str, violation: Violation) -> Failure {
    let mut world = World::new(seed, options);
    world.run(u64::MAX);
    let last = world.trace.entries.len().saturating_sub(1);
    let entry = violation.entry.min(last);
    let step = world.trace.entries.get(entry).map_or(0, |entry| entry.step);
    let from = (entry + 1).saturating_sub(LINES);
    let before = world.trace.entries[from..=entry].to_vec();
    let mut world = World::new(seed, options);
    world.run(step);
    Failure {
        seed,
        options: options.clone(),
        profile: world.profile(),
        promise,
        step,
        what: violation.what,
        states: world.states(),
        before,
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            seed,
            profile,
            promise,
            step,
            what,
            ..
        } = self;
        writeln!(
            f,
            "seed {seed} ({profile:?}) breaks {promise} in step {step}:"
        )?;
        writeln!(f, "  {what}")?;
        writeln!(f, "then:")?;
        for state in &self.states {
            writeln!(f, "  {state}")?;
        }
        writeln!(f, "before:")?;
        for entry in &self.before {
            writeln!(f, "  {entry}")?;
        }
        let Options {
            nodes, gateways, ..
        } = self.options;
        write!(
            f,
            "again: make reproduce SEED={seed} NODES={nodes} GATEWAYS={gateways}"
        )
    }
}
