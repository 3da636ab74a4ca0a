//! In which order a worker spreads publications over its connections.
//!
//! A fan-out is a job done in slices. Jobs of few recipients go first, so that
//! a popular channel does not hold up everybody else's; large ones take turns,
//! a slice each, and get one now and then however many small ones there are. What is published into a channel while its job is waiting or
//! under way is taken along in its next sweep, all of it in one: the busier a
//! worker is, the fewer writes it makes.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::ops::Range;
use std::sync::Arc;

use super::hub::{ChannelIndex, Hub, Unfollowed};
use crate::broadcast::Broadcast;

/// Connections that one slice visits at most.
pub const SLICE: usize = 32;
/// Connections that small jobs may visit before a large one's next slice: of what
/// a worker does, the large ones have a third at least.
const SMALL_RUN: usize = 2 * SLICE;
/// Publications that one sweep takes along at most.
const TOGETHER: usize = 64;
/// Publications that wait here at most; then the worker takes no more from the
/// edge, and whoever is before it in the chain waits or, at the bus, drops.
const WAITING_MAX: usize = 4_096;

/// Jobs of one worker.
#[derive(Debug, Default)]
pub struct Fanout {
    jobs: HashMap<ChannelIndex, Job>,
    small: VecDeque<ChannelIndex>,
    large: VecDeque<ChannelIndex>,
    /// What small jobs have visited since a large one's last slice.
    small_run: usize,
    waiting: usize,
}

#[derive(Debug, Default)]
struct Job {
    waiting: VecDeque<Arc<Broadcast>>,
    sweep: Option<Sweep>,
}

#[derive(Debug)]
struct Sweep {
    broadcasts: Arc<[Arc<Broadcast>]>,
    slots: Range<usize>,
}

/// A piece of work: these publications to the subscribers in these slots.
#[derive(Debug, Clone)]
pub struct Slice {
    /// Whose subscribers.
    pub channel: ChannelIndex,
    /// What to send, in order.
    pub broadcasts: Arc<[Arc<Broadcast>]>,
    /// To whom: see [`Hub::subscriber`].
    pub slots: Range<usize>,
    /// Whether the sweep ends with this slice.
    pub last: bool,
}

impl Fanout {
    /// Adds a publication of a live channel.
    pub fn push(&mut self, channel: ChannelIndex, broadcast: Arc<Broadcast>, audience: usize) {
        self.waiting += 1;
        if let Some(job) = self.jobs.get_mut(&channel) {
            job.waiting.push_back(broadcast);
            return;
        }
        let waiting = VecDeque::from([broadcast]);
        self.jobs.insert(
            channel,
            Job {
                waiting,
                sweep: None,
            },
        );
        let queue = if audience <= SLICE {
            &mut self.small
        } else {
            &mut self.large
        };
        queue.push_back(channel);
    }

    /// Whether nothing is to be done.
    pub fn is_idle(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Whether publications of a channel wait for a sweep, or one is on.
    pub fn is_busy(&self, channel: ChannelIndex) -> bool {
        self.jobs.contains_key(&channel)
    }

    /// Whether so much waits that nothing more should be taken in.
    pub fn is_full(&self) -> bool {
        self.waiting >= WAITING_MAX
    }

    /// Whether nothing but this slice is to be done, and it has one publication:
    /// then there is nothing to gather, and each write is best made at once.
    pub fn is_alone(&self, slice: &Slice) -> bool {
        slice.broadcasts.len() == 1 && self.waiting == 0 && self.jobs.len() == 1
    }

    /// The next piece of work, to be done and then reported with
    /// [`Fanout::done`].
    pub fn next(&mut self, hub: &mut Hub) -> Option<Slice> {
        let (channel, is_small) = self.pop()?;
        let job = self.jobs.get_mut(&channel)?;
        if job.sweep.is_none() {
            let count = job.waiting.len().min(TOGETHER);
            let broadcasts: Arc<[_]> = job.waiting.drain(..count).collect();
            self.waiting -= count;
            if let Some(last) = broadcasts.last() {
                hub.set_position(channel, last.position());
            }
            for broadcast in &*broadcasts {
                hub.keep(channel, broadcast);
            }
            job.sweep = Some(Sweep {
                broadcasts,
                slots: 0..hub.begin_sweep(channel),
            });
        }
        let sweep = job.sweep.as_mut()?;
        let end = sweep.slots.end.min(sweep.slots.start + SLICE);
        let slots = mem::replace(&mut sweep.slots.start, end)..end;
        if is_small {
            self.small_run += slots.len().max(1);
        }
        Some(Slice {
            channel,
            broadcasts: Arc::clone(&sweep.broadcasts),
            slots,
            last: sweep.slots.is_empty(),
        })
    }

    /// Whose turn it is, and whether that is a small one.
    fn pop(&mut self) -> Option<(ChannelIndex, bool)> {
        if (self.small_run < SMALL_RUN || self.large.is_empty())
            && let Some(small) = self.small.pop_front()
        {
            return Some((small, true));
        }
        self.small_run = 0;
        self.large.pop_front().map(|large| (large, false))
    }

    /// A slice has been done. `Some`: the channel's last subscriber went
    /// meanwhile.
    pub fn done(&mut self, slice: &Slice, hub: &mut Hub) -> Option<Unfollowed> {
        let channel = slice.channel;
        if !slice.last {
            self.large.push_back(channel);
            return None;
        }
        let unfollowed = hub.end_sweep(channel);
        let job = self.jobs.get_mut(&channel)?;
        job.sweep = None;
        if unfollowed.is_some() || job.waiting.is_empty() {
            self.waiting -= job.waiting.len();
            self.jobs.remove(&channel);
        } else if hub.audience(channel) <= SLICE {
            self.small.push_back(channel);
        } else {
            self.large.push_back(channel);
        }
        unfollowed
    }

    /// A channel's last subscriber has gone outside of a sweep: what waits for
    /// it has nobody to go to, and its index may be reused.
    pub fn forget(&mut self, channel: ChannelIndex) {
        if let Some(job) = self.jobs.remove(&channel) {
            self.waiting -= job.waiting.len();
            self.small.retain(|waiting| *waiting != channel);
            self.large.retain(|waiting| *waiting != channel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::hub::{ConnectionIndex, Subscribed, Wish};
    use proto::channel::ChannelKey;
    use proto::position::{Epoch, Offset, Position};
    use proto::publication::Publication;
    use proto::time::UnixTime;

    fn key(channel: &str) -> ChannelKey {
        ChannelKey {
            app: "a".parse().unwrap(),
            channel: channel.parse().unwrap(),
        }
    }

    fn broadcast(channel: &str, offset: u64) -> Arc<Broadcast> {
        let publication = Publication {
            offset: Offset(offset),
            event: "e".into(),
            data: "d".into(),
            exclude: None,
            accepted_at: UnixTime(0),
            mark: None,
        };
        Arc::new(Broadcast::publication(
            key(channel),
            Epoch(1),
            Arc::new(publication),
        ))
    }

    /// A hub with channels of so many subscribers, all live at offset 0.
    fn hub(channels: &[(&str, u32)]) -> Hub {
        let mut hub = Hub::default();
        for (channel, subscribers) in channels {
            for connection in 0..*subscribers {
                if let Subscribed::First(follow) =
                    hub.subscribe(ConnectionIndex(connection), &key(channel), Wish::default())
                {
                    let position = Position {
                        epoch: Epoch(1),
                        offset: Offset(0),
                    };
                    hub.attached(&key(channel), follow, position);
                }
            }
        }
        hub
    }

    fn push(fanout: &mut Fanout, hub: &Hub, channel: &str, offset: u64) {
        let index = hub.live(&key(channel)).unwrap();
        fanout.push(index, broadcast(channel, offset), hub.audience(index));
    }

    /// One slice: channel, offsets, slots.
    fn step(fanout: &mut Fanout, hub: &mut Hub) -> Option<(String, Vec<u64>, Range<usize>)> {
        let slice = fanout.next(hub)?;
        let channel = hub.key(slice.channel).unwrap().channel.to_string();
        let offsets = slice
            .broadcasts
            .iter()
            .map(|b| b.position().offset.0)
            .collect();
        fanout.done(&slice, hub);
        Some((channel, offsets, slice.slots))
    }

    #[test]
    fn small_jobs_overtake_a_large_one_between_its_slices() {
        let mut hub = hub(&[("large", 75), ("small", 2)]);
        let mut fanout = Fanout::default();
        push(&mut fanout, &hub, "large", 1);
        assert_eq!(
            step(&mut fanout, &mut hub),
            Some(("large".into(), vec![1], 0..32))
        );
        push(&mut fanout, &hub, "small", 1);
        assert_eq!(
            step(&mut fanout, &mut hub),
            Some(("small".into(), vec![1], 0..2))
        );
        assert_eq!(
            step(&mut fanout, &mut hub),
            Some(("large".into(), vec![1], 32..64))
        );
        assert_eq!(
            step(&mut fanout, &mut hub),
            Some(("large".into(), vec![1], 64..75))
        );
        assert!(fanout.is_idle());
    }

    #[test]
    fn a_large_job_gets_its_turn_however_many_small_ones_there_are() {
        let mut hub = hub(&[("large", 40), ("small", 2)]);
        let mut fanout = Fanout::default();
        push(&mut fanout, &hub, "large", 1);
        let visited = |(_, _, slots): &(String, Vec<u64>, Range<usize>)| slots.len();
        let (mut small, mut large) = (0, 0);
        for offset in 1.. {
            push(&mut fanout, &hub, "small", offset);
            let step = step(&mut fanout, &mut hub).unwrap();
            if step.0 == "small" {
                small += visited(&step);
                assert!(small < 1_000, "the large one waits for ever");
            } else {
                large += visited(&step);
                if large == 40 {
                    break;
                }
            }
        }
        // A third at least, as far as it had anything to do.
        assert_eq!(small, 2 * SMALL_RUN);
    }

    #[test]
    fn a_slice_is_alone_when_nothing_can_be_gathered() {
        let mut hub = hub(&[("a", 40), ("b", 2)]);
        let mut fanout = Fanout::default();
        push(&mut fanout, &hub, "a", 1);
        let first = fanout.next(&mut hub).unwrap();
        assert!(
            fanout.is_alone(&first),
            "every slice of it, not only the last"
        );
        fanout.done(&first, &mut hub);
        push(&mut fanout, &hub, "a", 2);
        let second = fanout.next(&mut hub).unwrap();
        assert!(!fanout.is_alone(&second), "more of the channel waits");
        fanout.done(&second, &mut hub);
        let third = fanout.next(&mut hub).unwrap();
        assert!(fanout.is_alone(&third));
        push(&mut fanout, &hub, "b", 1);
        assert!(!fanout.is_alone(&third), "others wait");
    }

    #[test]
    fn large_jobs_take_turns() {
        let mut hub = hub(&[("a", 40), ("b", 40)]);
        let mut fanout = Fanout::default();
        push(&mut fanout, &hub, "a", 1);
        push(&mut fanout, &hub, "b", 1);
        let turns: Vec<String> = std::iter::from_fn(|| step(&mut fanout, &mut hub))
            .map(|s| s.0)
            .collect();
        assert_eq!(turns, ["a", "b", "a", "b"]);
    }

    #[test]
    fn what_comes_meanwhile_is_taken_along_in_the_next_sweep() {
        let mut hub = hub(&[("a", 40)]);
        let mut fanout = Fanout::default();
        push(&mut fanout, &hub, "a", 1);
        step(&mut fanout, &mut hub);
        push(&mut fanout, &hub, "a", 2);
        push(&mut fanout, &hub, "a", 3);
        assert_eq!(
            step(&mut fanout, &mut hub),
            Some(("a".into(), vec![1], 32..40))
        );
        assert_eq!(
            step(&mut fanout, &mut hub),
            Some(("a".into(), vec![2, 3], 0..32))
        );
    }

    #[test]
    fn who_subscribes_during_a_sweep_gets_what_comes_after_it() {
        let mut hub = hub(&[("a", 40)]);
        let mut fanout = Fanout::default();
        push(&mut fanout, &hub, "a", 1);
        step(&mut fanout, &mut hub);
        push(&mut fanout, &hub, "a", 2);
        let position = Position {
            epoch: Epoch(1),
            offset: Offset(1),
        };
        assert_eq!(
            hub.subscribe(ConnectionIndex(40), &key("a"), Wish::default()),
            Subscribed::Live(position)
        );
        assert_eq!(step(&mut fanout, &mut hub).unwrap().2, 32..40);
        step(&mut fanout, &mut hub);
        assert_eq!(
            step(&mut fanout, &mut hub),
            Some(("a".into(), vec![2], 32..41))
        );
    }

    #[test]
    fn a_channel_whose_subscribers_all_went_is_forgotten() {
        let mut hub = hub(&[("a", 40)]);
        let mut fanout = Fanout::default();
        push(&mut fanout, &hub, "a", 1);
        let slice = fanout.next(&mut hub).unwrap();
        fanout.done(&slice, &mut hub);
        push(&mut fanout, &hub, "a", 2);
        for connection in 0..40 {
            assert_eq!(hub.remove(ConnectionIndex(connection)), []);
        }
        let slice = fanout.next(&mut hub).unwrap();
        assert_eq!(fanout.done(&slice, &mut hub).unwrap().key, key("a"));
        assert!(fanout.is_idle() && !fanout.is_full());
        assert_eq!(fanout.waiting, 0);
    }
}
