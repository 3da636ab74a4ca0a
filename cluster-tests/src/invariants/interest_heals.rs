//! Every difference between what a gateway wants and what the owner knows heals
//! within 10 s: after the faults have ended, and between them whenever nothing
//! is wrong for long enough.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::{Verdict, broken};
use crate::sim::clock::Moment;
use crate::sim::trace::{Channel, Fact, Process, Trace};

/// How long a difference may last.
const HEALS: Duration = Duration::from_secs(10);
/// Differences are looked for now and then, and so is their end.
const SLACK: Duration = Duration::from_millis(500);
/// What agreement may need, besides, to give a node that has just started its
/// shards back.
const AGREEMENT: Duration = Duration::from_secs(3);

/// What is known while a trace is read.
#[derive(Default)]
struct Reading {
    differs: HashMap<(u8, Channel), Moment>,
    faults: usize,
    known: BTreeSet<Process>,
    running: BTreeSet<Process>,
    calm_since: Moment,
}

impl Reading {
    /// A difference that has lasted for too long by now.
    fn overdue(&self, now: Moment) -> Option<(u8, Channel)> {
        if self.faults > 0 || self.running.len() < self.known.len() {
            return None;
        }
        let too_long =
            |since: &Moment| now.since((*since).max(self.calm_since + AGREEMENT)) > HEALS + SLACK;
        let mut differs = self.differs.iter();
        differs
            .find(|(_, since)| too_long(since))
            .map(|(what, _)| *what)
    }
}

/// Judges a trace.
pub fn check(trace: &Trace) -> Verdict {
    let mut reading = Reading::default();
    for (entry, fact) in trace.facts() {
        let at = trace.entries[entry].at;
        if let Some((gateway, channel)) = reading.overdue(at) {
            return broken(
                entry,
                format!("g{gateway} and the owner of channel {channel} differ for over 10 s"),
            );
        }
        match fact {
            Fact::Differs {
                gateway, channel, ..
            } => {
                reading.differs.entry((*gateway, *channel)).or_insert(at);
            }
            Fact::Agrees { gateway, channel } => {
                reading.differs.remove(&(*gateway, *channel));
            }
            Fact::Begins(_) => reading.faults += 1,
            Fact::Ends(_) => {
                reading.faults = reading.faults.saturating_sub(1);
                reading.calm_since = at;
            }
            Fact::Started { process, .. } => {
                reading.known.insert(*process);
                reading.running.insert(*process);
                reading.calm_since = at;
            }
            Fact::Ended { process } => {
                reading.running.remove(process);
            }
            Fact::Settled => {
                if let Some((gateway, channel)) = reading.differs.keys().next() {
                    return broken(
                        entry,
                        format!("g{gateway} and the owner of channel {channel} still differ"),
                    );
                }
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::faults::Fault;

    const DIFFERS: Fact = Fact::Differs {
        gateway: 0,
        channel: 3,
        wanted: true,
    };
    const AGREES: Fact = Fact::Agrees {
        gateway: 0,
        channel: 3,
    };

    #[test]
    fn a_difference_that_stays_is_noticed() {
        let healed = [(0, DIFFERS), (9_000, AGREES), (30_000, Fact::Settled)];
        assert_eq!(check(&Trace::timed(healed)), Ok(()));
        let late = [(5_000, DIFFERS), (30_000, AGREES)];
        assert_eq!(check(&Trace::timed(late)).unwrap_err().entry, 1);
        let never = [(0, DIFFERS), (9_000, Fact::Settled)];
        assert_eq!(check(&Trace::timed(never)).unwrap_err().entry, 1);
    }

    #[test]
    fn while_something_is_wrong_it_may_stay() {
        let fault = Fault::Loss(1);
        let facts = [
            (0, Fact::Begins(fault)),
            (1, DIFFERS),
            (30_000, Fact::Ends(fault)),
            (39_000, AGREES),
        ];
        assert_eq!(check(&Trace::timed(facts)), Ok(()));
    }
}
