//! Faults that come just when something is decided: chance alone would seldom
//! meet such a moment.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use node::core::cluster::{Assignment, Command, How};
use proto::id::NodeRef;

use super::{Event, FAULTS_END, World};
use crate::sim::faults::Profile;
use crate::sim::random::Random;

/// How often they come, in so many of a thousand moments.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    /// Who is promoted, though the owner lives, ends at once and is back at once.
    promotions: u32,
    /// Who has proposed something stands still when that is decided.
    decisions: u32,
    /// Who stands still goes on when what it has is about to be given away.
    surrenders: u32,
}

impl Timing {
    /// Draws how often they come.
    pub(super) fn draw(random: &mut Random, profile: Profile) -> Self {
        let crashes = matches!(profile, Profile::Crashes | Profile::Everything);
        let pauses = matches!(profile, Profile::Pauses | Profile::Everything);
        let mut rate = |may, rates: [u32; 3]| if may { *random.pick(&rates) } else { 0 };
        Self {
            promotions: rate(crashes, [0, 500, 1_000]),
            decisions: rate(pauses, [0, 20, 100]),
            surrenders: rate(pauses, [500, 1_000, 1_000]),
        }
    }
}

impl World {
    /// Standbys that are promoted though the owner lives may die just then, and be
    /// back before anyone has missed them.
    pub(super) fn strike_promoted(&mut self, command: &Command) {
        let Command::Assign(assignments) = command else {
            return;
        };
        let rows = &Arc::clone(&self.agreement.last().cluster);
        let owner_lives = |assignment: &Assignment| {
            let row = rows.rows().get(usize::from(assignment.shard.0));
            let row = row.and_then(Option::as_ref);
            row.and_then(|row| self.place_of(&row.owner))
                .is_some_and(|at| self.slots[at].pause.is_none())
        };
        let is_promotion = |a: &&Assignment| matches!(a.how, How::Promote { keep: None });
        let promoted = assignments.iter().filter(is_promotion);
        let promoted = promoted.filter(|assignment| owner_lives(assignment));
        let promoted: BTreeSet<&NodeRef> = promoted.map(|a| &a.owner).collect();
        for owner in promoted {
            if let Some(at) = self.place_of(owner)
                && self.strikes(self.timing.promotions)
            {
                let soon = self.soon(0, 10_000);
                self.schedule(soon, Event::Blink(at, self.slots[at].life));
            }
        }
    }

    /// A process ends, in this life, and is there again at once.
    pub(super) fn blink(&mut self, at: usize, life: u32) {
        if self.slots[at].life == life {
            self.end(at);
            let soon = self.soon(1_000, 20_000);
            self.schedule(soon, Event::Start(at));
        }
    }

    /// Who has proposed what is decided now may stand still.
    pub(super) fn strike_proposer(&mut self, at: usize) {
        let paused = self.slots[at].pause.is_some();
        let later = self.soon(600_000, 2_000_000);
        if !paused && later < FAULTS_END && self.strikes(self.timing.decisions) {
            self.pause(at);
            self.schedule(later, Event::Wake(at, self.slots[at].life));
        }
    }

    /// Those who stand still may go on when what they have is given away. Whether
    /// any does: then that takes a while to be decided, and longer to be heard of.
    pub(super) fn wake_given_up(&mut self, given_up: &BTreeSet<NodeRef>) -> bool {
        let mut wakes = false;
        for node in given_up {
            if let Some(at) = self.place_of(node)
                && self.slots[at].pause.is_some()
                && self.strikes(self.timing.surrenders)
            {
                wakes = true;
                let soon = self.soon(0, 10_000);
                self.schedule(soon, Event::Wake(at, self.slots[at].life));
            }
        }
        wakes
    }

    /// A process that stands still goes on, in this life, and hears of what is
    /// agreed some time later; of what was agreed until now perhaps at once.
    pub(super) fn go_on(&mut self, at: usize, life: u32) {
        self.resume(at, life);
        if self.random.chance(800) {
            self.catch_up(at);
        }
        let later = self.soon(500, 800_000);
        if self.slots[at].life == life {
            self.slots[at].deaf_until = later;
            self.schedule(later, Event::CatchUp(at));
        }
    }

    fn strikes(&mut self, rate: u32) -> bool {
        // Whoever is struck has to be back when there are no faults any more.
        let is_early = self.now + Duration::from_secs(1) < FAULTS_END;
        rate > 0 && is_early && self.random.chance(rate)
    }
}
