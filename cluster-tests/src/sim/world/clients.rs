//! Clients and publishers act.

use std::collections::btree_map;

use super::{Event, Program, World};
use crate::sim::clock::Moment;
use crate::sim::gateway;
use crate::sim::gateway::Wish;
use crate::sim::trace::{Answer, Channel, Fact, Order};
use crate::sim::workload;
use crate::sim::workload::{CHANNELS, Move, Place, ROOMS};

impl World {
    pub(super) fn wish(&mut self, at: usize, wish: Wish) {
        let now = self.timestamp(at);
        let slot = &mut self.slots[at];
        if let Some(pause) = &mut slot.pause {
            pause.wishes.push_back(wish);
            return;
        }
        let Program::Gateway(gateway) = &mut slot.program else {
            return;
        };
        if let Wish::Publish(order, publish) = &wish
            && gateway.serves()
        {
            let first = publish.data.parse().expect("our payloads are numbers");
            self.trace.add(Fact::Asked {
                order: *order,
                gateway: gateway.number,
                channel: workload::channel_of(&publish.key),
                probe: self.is_whole,
                repeats: (first != *order).then_some(first),
            });
        }
        gateway.wish(now, wish, &mut self.trace, &mut self.gateway_out);
        self.perform_gateway(at);
    }

    /// A gateway that takes clients.
    pub(super) fn open_gateway(&mut self) -> Option<usize> {
        let serves = |at: &usize| match &self.slots[*at].program {
            Program::Gateway(gateway) => gateway.serves(),
            _ => false,
        };
        let all: Vec<usize> = (self.nodes()..self.slots.len()).filter(serves).collect();
        (!all.is_empty()).then(|| *self.random.pick(&all))
    }

    pub(super) fn client(&mut self, number: usize) {
        let Some(place) = self.clients[number].place else {
            let Some(at) = self.open_gateway() else {
                let at = self.soon(50_000, 300_000);
                self.schedule(at, Event::Client(number));
                return;
            };
            self.connect(number, at);
            return;
        };
        if self.healing.is_some() {
            return;
        }
        let at = self.nodes() + usize::from(place.gateway);
        let Place {
            worker, connection, ..
        } = place;
        let mut next = self.soon(300_000, 6_000_000);
        match self.clients[number].draw(&mut self.random) {
            Move::Subscribe(channel) => {
                if let btree_map::Entry::Vacant(new) = self.clients[number].wants.entry(channel) {
                    new.insert(None);
                    let key = self.channels[usize::from(channel)].clone();
                    self.wish(at, Wish::Subscribe(worker, connection, key, None));
                }
            }
            Move::Unsubscribe(channel) => {
                self.clients[number].wants.remove(&channel);
                let key = self.channels[usize::from(channel)].clone();
                self.wish(at, Wish::Unsubscribe(worker, connection, key));
            }
            Move::Leave(away) => {
                self.forget_place(number);
                self.wish(at, Wish::Close(worker, connection));
                next = self.now + away;
            }
            Move::Stay => {}
        }
        self.schedule(next, Event::Client(number));
    }

    /// A client enters a room, or exits it.
    pub(super) fn member(&mut self, number: usize) {
        let next = Moment(self.now.0 + self.of_rooms.between(300_000, 5_000_000));
        self.schedule(next, Event::Member(number));
        let room = CHANNELS + self.of_rooms.below(u64::from(ROOMS)) as Channel;
        let (Some(place), None) = (self.clients[number].place, self.healing) else {
            return;
        };
        let at = self.nodes() + usize::from(place.gateway);
        let (worker, connection) = (place.worker, place.connection);
        let key = self.channels[usize::from(room)].clone();
        let rooms = &mut self.clients[number].rooms;
        if rooms.remove(&room) {
            self.wish(at, Wish::Unsubscribe(worker, connection, key));
        } else {
            rooms.insert(room);
            let user = workload::user_of(number);
            self.wish(at, Wish::Enter(worker, connection, key, user));
        }
    }

    /// A client loses its connection, and perhaps the last thing on it.
    pub(super) fn forget_place(&mut self, number: usize) {
        let lost = self.random.chance(200);
        let client = &mut self.clients[number];
        let Some(place) = client.place.take() else {
            return;
        };
        for (channel, cursor) in &mut client.wants {
            if let Some([latest, before]) = self.trace.cursors(place.connection, *channel) {
                *cursor = Some(if lost { before } else { latest });
            }
        }
    }

    fn connect(&mut self, number: usize, at: usize) {
        self.connections += 1;
        let connection = self.connections;
        let worker = self.random.below(gateway::WORKERS as u64) as u8;
        self.clients[number].place = Some(Place {
            gateway: (at - self.nodes()) as u8,
            worker,
            connection,
        });
        self.wish(at, Wish::Connect(worker, connection));
        for (channel, cursor) in self.clients[number].wants.clone() {
            let key = self.channels[usize::from(channel)].clone();
            let cursor = cursor.filter(|_| self.clients[number].resumes);
            self.wish(at, Wish::Subscribe(worker, connection, key, cursor));
        }
        for room in self.clients[number].rooms.clone() {
            let key = self.channels[usize::from(room)].clone();
            let user = workload::user_of(number);
            self.wish(at, Wish::Enter(worker, connection, key, user));
        }
        let next = self.soon(300_000, 6_000_000);
        self.schedule(next, Event::Client(number));
    }

    pub(super) fn publish(&mut self) {
        if self.healing.is_some() {
            return;
        }
        let next = self.soon(0, 2_000 * self.publish_every_ms);
        self.schedule(next, Event::Publish);
        let channel = workload::published_channel(&mut self.random);
        // Now and then many at once.
        let count = if self.random.chance(10) {
            self.random.between(5, 40)
        } else {
            1
        };
        let Some(at) = self.open_gateway() else {
            return;
        };
        for _ in 0..count {
            self.publish_to(channel, at);
        }
    }

    pub(super) fn publish_to(&mut self, channel: Channel, at: usize) {
        self.orders += 1;
        let first = self.orders;
        if workload::is_keyed(first) {
            self.keyed.insert(first, (channel, workload::REPEATS));
            let at = self.soon(200_000, 8_000_000);
            self.schedule(at, Event::Again(first));
        }
        self.publish_as(first, first, channel, at);
    }

    /// A publisher that has had no answer that it likes asks once more, where
    /// it finds somebody.
    pub(super) fn publish_again(&mut self, first: Order) {
        let Some((channel, repeats)) = self.keyed.get_mut(&first) else {
            return;
        };
        let channel = *channel;
        *repeats -= 1;
        if *repeats == 0 || self.healing.is_some() {
            self.keyed.remove(&first);
            return;
        }
        let next = self.soon(200_000, 8_000_000);
        self.schedule(next, Event::Again(first));
        if let Some(at) = self.open_gateway() {
            self.orders += 1;
            self.publish_as(self.orders, first, channel, at);
        }
    }

    fn publish_as(&mut self, order: Order, first: Order, channel: Channel, at: usize) {
        let accepted_at = self.slots[at].clock.wall(self.now);
        let key = &self.channels[usize::from(channel)];
        let publish = workload::publish(key, first, &self.event_name, accepted_at);
        self.wish(at, Wish::Publish(order, publish));
    }

    /// A publisher is answered. One whose publish is in its channel asks no
    /// more; but it may have asked twice already.
    pub(super) fn answered(&mut self, order: Order, first: Order, answer: Answer) {
        if let Answer::Accepted(_) = answer {
            self.keyed.remove(&first);
        }
        self.trace.add(Fact::Answered { order, answer });
    }
}
