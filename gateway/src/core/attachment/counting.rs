//! How many subscribers a channel has: those of this gateway, for its owner, and those of
//! all gateways, as the owner says.

use super::{Attachment, Step};
use crate::core::workers::{WorkerId, Workers};

/// Of a channel whose subscribers are counted.
#[derive(Debug, Default)]
pub(super) struct Counting {
    /// Here, by worker.
    here: Vec<(WorkerId, u32)>,
    /// What the owner was last told of that; `None`: nothing.
    stated: Option<u32>,
    /// Everywhere, as it last said.
    all: Option<u32>,
}

impl Attachment {
    /// A worker has so many subscribers. `true`: the owner is to hear of it.
    pub fn set_count(&mut self, worker: WorkerId, count: u32) -> bool {
        let counting = self.counting.get_or_insert_default();
        match counting.here.iter_mut().find(|(of, _)| *of == worker) {
            Some((_, known)) => *known = count,
            None => counting.here.push((worker, count)),
        }
        self.owes_count()
    }

    /// Whether the owner knows of another number than there are.
    pub fn owes_count(&self) -> bool {
        let counting = self.counting.as_ref();
        counting.is_some_and(|counting| counting.stated != Some(self.subscribers()))
    }

    /// What a join says of this gateway: how many subscribers it has, if they are counted,
    /// or else how many workers follow.
    pub fn subscribers(&self) -> u32 {
        match &self.counting {
            Some(counting) => counting.here.iter().map(|(_, count)| count).sum(),
            None => self.told.len() + self.waiting.len() as u32,
        }
    }

    /// Whether subscribers are counted.
    pub fn is_counted(&self) -> bool {
        self.counting.is_some()
    }

    /// A join is sent, with their number or without: an owner takes it for the number of
    /// workers then.
    pub fn state_count(&mut self, is_said: bool) {
        let count = self.subscribers();
        if let Some(counting) = &mut self.counting {
            counting.stated = is_said.then_some(count);
        }
    }

    /// The owner says how many there are at all gateways.
    pub fn count(&mut self, count: u32, steps: &mut Vec<Step>) {
        let Some(counting) = &mut self.counting else {
            return;
        };
        if counting.all.replace(count) != Some(count) {
            let told = self.told;
            self.tell_count(told, steps);
        }
    }

    pub(super) fn tell_count_to(&self, worker: WorkerId, steps: &mut Vec<Step>) {
        self.tell_count(Workers::only(worker), steps);
    }

    pub(super) fn forget_count(&mut self, worker: WorkerId) {
        if let Some(counting) = &mut self.counting {
            counting.here.retain(|(of, _)| *of != worker);
        }
    }

    fn tell_count(&self, workers: Workers, steps: &mut Vec<Step>) {
        let count = self.counting.as_ref().and_then(|counting| counting.all);
        if let (Some(count), Some(position)) = (count, self.position)
            && !workers.is_empty()
        {
            steps.push(Step::Count {
                workers,
                position,
                count,
            });
        }
    }
}
