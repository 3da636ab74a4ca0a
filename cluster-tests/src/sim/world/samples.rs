//! What nobody tells: what the world looks at from time to time, to write it
//! down.

use std::collections::{BTreeSet, VecDeque};

use node::core::placement;
use proto::id::GatewayRef;

use super::{Event, HEALING, PROBING, Program, RUNNING, SAMPLE, SUBSCRIPTION, Slot, World};
use crate::sim::clock::Moment;
use crate::sim::node as nodes;
use crate::sim::trace::{Channel, Fact};
use crate::sim::worker;
use crate::sim::workload::CHANNELS;

impl World {
    pub(super) fn sample(&mut self) {
        let next = self.now + SAMPLE;
        self.schedule(next, Event::Sample);
        for gateway in 0..self.options.gateways {
            for channel in 0..CHANNELS {
                self.compare(gateway, channel);
            }
        }
        self.look_for_ghosts();
        self.measure_queues();
        if let Some(healing) = self.healing {
            self.see_whether_whole(healing);
            self.is_placed |= self.is_whole && self.unsettled() == 0;
        }
    }

    /// Whether a gateway wants a channel, and whether its owner knows.
    pub(super) fn compare(&mut self, gateway: u8, channel: Channel) {
        let key = &self.channels[usize::from(channel)];
        let shard = self.shards[usize::from(channel)];
        let at = self.nodes() + usize::from(gateway);
        let Program::Gateway(program) = &self.slots[at].program else {
            return;
        };
        let wanted = program.wants(key);
        let knows = || {
            let me = program.me()?;
            let (owner, _) = self.agreement.last().map.owner(shard)?;
            let number: usize = owner.id.as_str()[1..].parse().ok()?;
            let Program::Node(node) = &self.slots[number].program else {
                return None;
            };
            if node.me != *owner {
                return None;
            }
            let state = node.describe(shard, key)?;
            let mut followers = state.iter().flat_map(|state| &state.followers);
            Some(followers.any(|(follower, _)| follower == me))
        };
        // An owner that cannot be asked disagrees with everyone who wants
        // something of it.
        let now = match knows() {
            Some(knows) => knows != wanted,
            None => wanted,
        };
        let nth = usize::from(gateway) * usize::from(CHANNELS) + usize::from(channel);
        if std::mem::replace(&mut self.differs[nth], now) != now {
            self.trace.add(if now {
                Fact::Differs {
                    gateway,
                    channel,
                    wanted,
                }
            } else {
                Fact::Agrees { gateway, channel }
            });
        }
    }

    pub(super) fn look_for_ghosts(&mut self) {
        for at in 0..self.nodes() {
            let Program::Node(node) = &self.slots[at].program else {
                continue;
            };
            let lives = node.gateways(self.slots[at].clock.timestamp(self.now));
            for (channel, key) in (0..).zip(&self.channels) {
                let shard = self.shards[usize::from(channel)];
                let Some(Some(state)) = node.describe(shard, key) else {
                    continue;
                };
                for (follower, _) in state.followers {
                    let later = |life: &GatewayRef| {
                        life.id == follower.id && life.incarnation > follower.incarnation
                    };
                    if lives.iter().any(later) || node.is_gone(&follower) {
                        let gateway = follower.id.as_str()[1..].parse().unwrap_or(u8::MAX);
                        self.trace.add(Fact::Ghost {
                            node: at as u8,
                            gateway,
                            channel,
                        });
                    }
                }
            }
        }
    }

    pub(super) fn measure_queues(&mut self) {
        for slot in &mut self.slots {
            let process = slot.process;
            let unread = slot.pause.iter().flat_map(|pause| &pause.unread);
            let unread = unread.map(VecDeque::len).max().unwrap_or(0);
            let mut queues = vec![("a subscription", unread, SUBSCRIPTION)];
            match &slot.program {
                Program::Node(node) => {
                    let own = node.queues();
                    queues.extend(own.map(|(queue, length)| (queue, length, nodes::MAILBOX)));
                }
                Program::Gateway(gateway) => {
                    let length = gateway.waiting();
                    queues.push(("the mailbox of a worker", length, worker::MAILBOX));
                }
                Program::Down | Program::Starting { .. } => {}
            }
            for (most, (queue, length, bound)) in slot.most.iter_mut().zip(queues) {
                // Not every new length is worth a fact.
                if length > bound || length > 2 * *most + 16 {
                    *most = length;
                    self.trace.add(Fact::Queued {
                        process,
                        queue,
                        length,
                        bound,
                    });
                }
            }
        }
    }

    pub(super) fn see_whether_whole(&mut self, healing: Moment) {
        let runs = |slot: &Slot| match &slot.program {
            Program::Node(_) => true,
            Program::Gateway(gateway) => gateway.serves(),
            Program::Down | Program::Starting { .. } => false,
        };
        let connected = self.clients.iter().all(|client| client.place.is_some());
        if !self.is_whole && connected && self.slots.iter().all(runs) {
            self.is_whole = true;
            self.trace.add(Fact::Whole);
            self.schedule(self.now + HEALING, Event::Settle);
        } else if !self.is_whole && self.now.since(healing) > RUNNING {
            self.schedule(self.now, Event::Finish);
        }
    }

    /// How many shards are not where they should be; of those that are to have no
    /// standby that much is right.
    fn unsettled(&self) -> usize {
        let cluster = &self.agreement.last().cluster;
        let mut targets = placement::targets(cluster, &BTreeSet::new());
        for (shard, target) in &mut targets {
            if self.is_bare(*shard) {
                target.standby = None;
            }
        }
        placement::unsettled(cluster, &targets)
    }

    pub(super) fn settle(&mut self) {
        if !self.is_placed {
            self.trace.add(Fact::Unsettled(self.unsettled()));
        }
        self.trace.add(Fact::Settled);
        for channel in 0..CHANNELS {
            if let Some(at) = self.open_gateway() {
                self.publish_to(channel, at);
            }
        }
        self.schedule(self.now + PROBING, Event::Finish);
    }
}
