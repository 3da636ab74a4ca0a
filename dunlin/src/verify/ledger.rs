//! The ledger of `dunlin verify`: publication → answer → what each client got;
//! and the judge of it. Pure.
//!
//! Nothing is believed that a client could not see. A publication has a number
//! of ours; a delivery says the position at which the server has it. So the
//! ledger learns for each channel which number stands where, and holds every
//! client to that:
//!
//! - a position that comes again is *duplicated*, and so is a number that
//!   stands at two positions of one epoch;
//! - a position that comes after a later one is *reordered*, and so are two
//!   publications of which the later one had been acknowledged before the
//!   earlier one was sent;
//! - positions that are left out without a word are a *silent gap*, and what
//!   stood there is *lost*, as is what was acknowledged and never came;
//! - an answer that takes back what the same client knew already (a position
//!   before its own, an epoch that it has left) is *stale*;
//! - two clients that got different things at one position, or a delivery of
//!   what was refused, are *contradictions*.
//!
//! A publication without an answer is *unknown*: it may appear, once, or not.
//! A gap that was announced is no breach; it is counted.
//!
//! Bounded: what every client has passed is forgotten, but for its being
//! closed. [`Ledger::open`] says how much is not; publishers wait when it is
//! too much.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use hdrhistogram::Histogram;
use proto::position::{Epoch, Offset, Position};

#[cfg(test)]
mod tests;

/// Nanoseconds since the run began.
pub(super) type Nanos = u64;
/// Of a publication; counts up over all channels and publishers.
pub(super) type Number = u64;

/// Breaches that are described; all are counted.
const EXAMPLES_MAX: usize = 20;
/// Left-out stretches that a reader remembers, so that what comes late is told
/// from what comes twice.
const HOLES_MAX: usize = 64;
/// Delays are told apart up to an hour.
const DELAY_US_MAX: u64 = 3_600_000_000;
/// Epochs that a reader remembers to have left.
const LEFT_MAX: usize = 64;

/// What became of a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Accepted,
    /// The server said that nothing was published.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// One client in one channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reader {
    channel: usize,
    index: usize,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Findings {
    pub(super) accepted: u64,
    pub(super) refused: u64,
    pub(super) unknown: u64,
    pub(super) deliveries: u64,
    /// Publications that a client should have got and did not; each client
    /// counts.
    pub(super) lost: u64,
    pub(super) duplicated: u64,
    pub(super) reordered: u64,
    pub(super) silent_gaps: u64,
    pub(super) stale_answers: u64,
    pub(super) contradictions: u64,
    /// Announced gaps, by reason.
    pub(super) gaps: BTreeMap<String, u64>,
    /// Publications inside announced gaps, as far as they can be counted.
    pub(super) missed_in_gaps: u64,
    /// Publications that stand in two epochs of their channel: the owner that
    /// took them the first time is gone, with what it knew.
    pub(super) repeated_in_new_epoch: u64,
    /// The first few breaches, in words.
    pub(super) examples: Vec<String>,
}

impl Findings {
    /// How often a promise did not hold.
    pub(super) fn breaches(&self) -> u64 {
        self.lost
            + self.duplicated
            + self.reordered
            + self.silent_gaps
            + self.stale_answers
            + self.contradictions
    }

    fn example(&mut self, text: impl FnOnce() -> String) {
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(text());
        }
    }
}

/// A publication that is not closed.
#[derive(Debug)]
struct Publication {
    channel: usize,
    sent: Nanos,
    /// `None`: the answer is still to come.
    answer: Option<(Outcome, Nanos)>,
    /// Where it stands, once a client has got it.
    position: Option<Position>,
}

/// What stands at a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Ours(Number),
    /// Others may publish into the same channel.
    Foreign,
}

/// One epoch of a channel.
#[derive(Debug)]
struct Life {
    epoch: Epoch,
    /// What is known to stand where, and not closed.
    log: BTreeMap<Offset, Content>,
    /// The highest offset that any client was told of.
    head: Offset,
    /// Everything up to here is closed.
    closed: Offset,
    /// When the latest publication of those that are closed was sent.
    sent_max: Nanos,
}

impl Life {
    fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            log: BTreeMap::new(),
            head: Offset::ZERO,
            closed: Offset::ZERO,
            sent_max: 0,
        }
    }
}

/// Offsets of one epoch that a reader was not given.
#[derive(Debug, Clone, Copy)]
struct Hole {
    epoch: Epoch,
    first: Offset,
    last: Offset,
    announced: bool,
}

impl Hole {
    fn size(&self) -> u64 {
        (self.last.0 + 1).saturating_sub(self.first.0)
    }

    fn has(&self, position: Position) -> bool {
        self.epoch == position.epoch
            && self.first <= position.offset
            && position.offset <= self.last
    }
}

/// One client's way through one channel.
#[derive(Debug)]
struct State {
    client: usize,
    /// Everything up to here was given to it, or is in `holes`. `None`: it was
    /// never attached.
    cursor: Option<Position>,
    /// Since when it is attached, this time.
    attached: Nanos,
    holes: VecDeque<Hole>,
    /// Where it came to in a new epoch without being told why, so far.
    leaps: Vec<Position>,
    /// Epochs that it knows to be over.
    left: VecDeque<Epoch>,
    /// When it was last told of a gap.
    gap: Option<Nanos>,
}

#[derive(Debug)]
struct Channel {
    name: String,
    /// In the order in which clients came to know of them.
    lives: Vec<Life>,
    readers: Vec<State>,
}

impl Channel {
    /// A client was told of this position: the channel has come at least so far.
    fn told(&mut self, position: Position) -> &mut Life {
        let epoch = position.epoch;
        let known = self.lives.iter().position(|life| life.epoch == epoch);
        let at = known.unwrap_or_else(|| {
            self.lives.push(Life::new(epoch));
            self.lives.len() - 1
        });
        let life = &mut self.lives[at];
        life.head = life.head.max(position.offset);
        life
    }

    /// Which of its lives a reader is in; `None`: in none of them.
    fn standing(&self, reader: &State) -> Option<(usize, Offset)> {
        let cursor = reader.cursor?;
        let at = self
            .lives
            .iter()
            .position(|life| life.epoch == cursor.epoch)?;
        Some((at, cursor.offset))
    }

    /// How many positions a reader is behind what clients were told of.
    fn behind(&self, reader: &State) -> u64 {
        let (at, offset) = match self.standing(reader) {
            Some(standing) => standing,
            None => (0, Offset::ZERO),
        };
        let ahead = self.lives.iter().skip(at + 1).map(|life| life.head.0);
        let here = self.lives.get(at);
        here.map_or(0, |life| life.head.0.saturating_sub(offset.0)) + ahead.sum::<u64>()
    }
}

#[derive(Debug)]
struct Client {
    name: String,
    connected: bool,
}

#[derive(Debug)]
pub(super) struct Ledger {
    channels: Vec<Channel>,
    clients: Vec<Client>,
    publications: HashMap<Number, Publication>,
    next: Number,
    findings: Findings,
    /// Microseconds from the answer to each delivery; from the client's return
    /// where that came later.
    delays: Histogram<u64>,
}

impl Ledger {
    pub(super) fn new(channels: impl IntoIterator<Item = String>) -> Self {
        let channel = |name| Channel {
            name,
            lives: Vec::new(),
            readers: Vec::new(),
        };
        Self {
            channels: channels.into_iter().map(channel).collect(),
            clients: Vec::new(),
            publications: HashMap::new(),
            next: 1,
            findings: Findings::default(),
            delays: Histogram::new_with_bounds(1, DELAY_US_MAX, 3).expect("valid bounds"),
        }
    }

    /// A client that follows these channels; its readers, in the same order.
    pub(super) fn add_client(&mut self, name: String, channels: &[usize]) -> (usize, Vec<Reader>) {
        let client = self.clients.len();
        self.clients.push(Client {
            name,
            connected: false,
        });
        let readers = channels.iter().map(|&channel| {
            let readers = &mut self.channels[channel].readers;
            readers.push(State {
                client,
                cursor: None,
                attached: 0,
                holes: VecDeque::new(),
                leaps: Vec::new(),
                left: VecDeque::new(),
                gap: None,
            });
            let index = readers.len() - 1;
            Reader { channel, index }
        });
        (client, readers.collect())
    }

    /// Whether a client has a connection. Nothing can be expected of a server
    /// that it cannot reach.
    pub(super) fn connected(&mut self, client: usize, connected: bool) {
        self.clients[client].connected = connected;
    }

    /// Publications, and positions, that are not closed.
    pub(super) fn open(&self) -> usize {
        self.publications.len()
    }

    pub(super) fn findings(&self) -> &Findings {
        &self.findings
    }

    /// A publication is about to be sent.
    pub(super) fn sent(&mut self, channel: usize, now: Nanos) -> Number {
        let number = self.next;
        self.next += 1;
        let publication = Publication {
            channel,
            sent: now,
            answer: None,
            position: None,
        };
        self.publications.insert(number, publication);
        number
    }

    /// The last word about it.
    pub(super) fn answered(&mut self, number: Number, outcome: Outcome, now: Nanos) {
        match outcome {
            Outcome::Accepted => self.findings.accepted += 1,
            Outcome::Refused => self.findings.refused += 1,
            Outcome::Unknown => self.findings.unknown += 1,
        }
        let Some(publication) = self.publications.get_mut(&number) else {
            return;
        };
        publication.answer = Some((outcome, now));
        if let (Outcome::Refused, Some(position)) = (outcome, publication.position) {
            self.findings.contradictions += 1;
            let channel = &self.channels[publication.channel].name;
            self.findings
                .example(|| format!("{channel}: {number} was refused and stands at {position}"));
        }
    }

    /// A client is attached, with everything after a position to come.
    pub(super) fn attached(&mut self, reader: Reader, position: Position, now: Nanos) {
        self.channels[reader.channel].readers[reader.index].attached = now;
        self.stated(reader, position);
    }

    /// A client was told where it stands, without getting anything.
    pub(super) fn stated(&mut self, reader: Reader, position: Position) {
        let channel = &mut self.channels[reader.channel];
        let state = &channel.readers[reader.index];
        let stale = state.cursor.filter(|cursor| {
            if cursor.epoch == position.epoch {
                position.offset < cursor.offset
            } else {
                state.left.contains(&position.epoch)
            }
        });
        if let Some(cursor) = stale {
            self.findings.stale_answers += 1;
            let (name, client) = (&channel.name, &self.clients[state.client].name);
            self.findings.example(|| {
                format!("{client}, {name}: told {position}, though it had come to {cursor}")
            });
            return;
        }
        channel.told(position);
        self.skip_to(reader, position);
    }

    /// Moves a reader on without having been given what is between.
    fn skip_to(&mut self, reader: Reader, position: Position) {
        let state = &mut self.channels[reader.channel].readers[reader.index];
        let Some(cursor) = state.cursor.replace(position) else {
            // That is where it begins.
            return;
        };
        if cursor.epoch != position.epoch {
            leave(state, cursor.epoch);
            state.leaps.push(position);
        } else if cursor.offset < position.offset {
            let hole = Hole {
                epoch: cursor.epoch,
                first: cursor.offset.next(),
                last: position.offset,
                announced: false,
            };
            self.remember(reader, hole);
        }
    }

    fn remember(&mut self, reader: Reader, hole: Hole) {
        let state = &mut self.channels[reader.channel].readers[reader.index];
        state.holes.push_back(hole);
        if state.holes.len() > HOLES_MAX
            && let Some(oldest) = state.holes.pop_front()
        {
            self.judge_hole(reader, oldest);
        }
    }

    /// A hole that nothing can fill any more.
    fn judge_hole(&mut self, reader: Reader, hole: Hole) {
        if hole.announced || hole.size() == 0 {
            return;
        }
        self.findings.silent_gaps += 1;
        self.findings.lost += hole.size();
        let channel = &self.channels[reader.channel];
        let client = &self.clients[channel.readers[reader.index].client].name;
        let (
            name,
            Hole {
                epoch, first, last, ..
            },
        ) = (&channel.name, hole);
        self.findings
            .example(|| format!("{client}, {name}: not given {epoch}-{first} to {last}, nor told"));
    }

    /// A client was told that publications before `latest` are missing.
    pub(super) fn gap(&mut self, reader: Reader, reason: &str, latest: Position, now: Nanos) {
        *self.findings.gaps.entry(reason.to_owned()).or_default() += 1;
        let channel = &mut self.channels[reader.channel];
        if !channel.readers[reader.index].left.contains(&latest.epoch) {
            channel.told(latest);
        }
        let state = &mut channel.readers[reader.index];
        state.gap = Some(now);
        // The acknowledgement may have come before the announcement.
        let skipped = state.holes.iter_mut().find(|hole| {
            !hole.announced && hole.epoch == latest.epoch && hole.last == latest.offset
        });
        if let Some(hole) = skipped {
            hole.announced = true;
            self.findings.missed_in_gaps += hole.size();
            return;
        }
        if let Some(at) = state.leaps.iter().position(|leap| *leap == latest) {
            state.leaps.swap_remove(at);
            self.findings.missed_in_gaps += latest.offset.0;
            return;
        }
        match state.cursor {
            None => state.cursor = Some(latest),
            Some(cursor) if cursor.epoch == latest.epoch && cursor.offset < latest.offset => {
                state.cursor = Some(latest);
                let hole = Hole {
                    epoch: latest.epoch,
                    first: cursor.offset.next(),
                    last: latest.offset,
                    announced: true,
                };
                self.findings.missed_in_gaps += hole.size();
                self.remember(reader, hole);
            }
            Some(cursor) if cursor.epoch != latest.epoch && !state.left.contains(&latest.epoch) => {
                leave(state, cursor.epoch);
                state.cursor = Some(latest);
                self.findings.missed_in_gaps += latest.offset.0;
            }
            // A gap of nothing, as when a channel was forgotten that had
            // nothing new.
            Some(cursor) if cursor == latest => {}
            Some(cursor) => {
                self.findings.stale_answers += 1;
                let (name, client) = (&channel.name, &self.clients[state.client].name);
                self.findings.example(|| {
                    format!("{client}, {name}: a gap ({reason}) up to {latest}, though it had come to {cursor}")
                });
            }
        }
    }

    /// A client got something: one of our publications, or (`None`) somebody
    /// else's.
    pub(super) fn got(
        &mut self,
        reader: Reader,
        position: Position,
        number: Option<Number>,
        now: Nanos,
    ) {
        self.findings.deliveries += 1;
        self.record(reader, position, number);
        self.advance(reader, position);
        let attached = self.channels[reader.channel].readers[reader.index].attached;
        if let Some(publication) = number.and_then(|number| self.publications.get(&number)) {
            // Before the answer, it cannot be late.
            let accepted = match publication.answer {
                Some((Outcome::Accepted, at)) => at,
                _ => now,
            };
            let delay = now.saturating_sub(accepted.max(attached));
            self.delays.saturating_record(delay / 1_000);
        }
    }

    /// What stands where, whoever got it.
    fn record(&mut self, reader: Reader, position: Position, number: Option<Number>) {
        let channel = &mut self.channels[reader.channel];
        if channel.readers[reader.index].left.contains(&position.epoch) {
            return;
        }
        let life = channel.told(position);
        if position.offset <= life.closed {
            // Everybody has passed it: whoever gets it now gets it again.
            return;
        }
        let content = number.map_or(Content::Foreign, Content::Ours);
        let before = life.log.insert(position.offset, content);
        let name = &channel.name;
        if let Some(before) = before {
            if before != content {
                self.findings.contradictions += 1;
                self.findings.example(|| {
                    format!("{name}: at {position} some got {before:?}, others {content:?}")
                });
            }
            return;
        }
        let Some(number) = number else { return };
        let publication = self.publications.get_mut(&number);
        let Some(publication) = publication.filter(|known| known.channel == reader.channel) else {
            let (count, what) = if number < self.next && !self.publications.contains_key(&number) {
                (&mut self.findings.duplicated, "was over before and")
            } else {
                (
                    &mut self.findings.contradictions,
                    "is not of this channel and",
                )
            };
            *count += 1;
            self.findings
                .example(|| format!("{name}: {number} {what} stands at {position}"));
            return;
        };
        if matches!(publication.answer, Some((Outcome::Refused, _))) {
            self.findings.contradictions += 1;
            self.findings
                .example(|| format!("{name}: {number} was refused and stands at {position}"));
        }
        match publication.position.replace(position) {
            None => {}
            Some(first) if first.epoch == position.epoch => {
                self.findings.duplicated += 1;
                self.findings
                    .example(|| format!("{name}: {number} stands at {first} and at {position}"));
            }
            Some(_) => self.findings.repeated_in_new_epoch += 1,
        }
    }

    /// Where the reader is now.
    fn advance(&mut self, reader: Reader, position: Position) {
        let state = &mut self.channels[reader.channel].readers[reader.index];
        let Some(cursor) = state.cursor else {
            state.cursor = Some(position);
            return;
        };
        let before = Position {
            offset: Offset(position.offset.0.saturating_sub(1)),
            ..position
        };
        if cursor == before {
            state.cursor = Some(position);
        } else if cursor.epoch == position.epoch && position.offset <= cursor.offset
            || state.left.contains(&position.epoch)
        {
            self.came_late(reader, position);
        } else {
            self.skip_to(reader, before);
            self.channels[reader.channel].readers[reader.index].cursor = Some(position);
        }
    }

    /// Something came after the reader had passed it: late, or again.
    fn came_late(&mut self, reader: Reader, position: Position) {
        let channel = &mut self.channels[reader.channel];
        let state = &mut channel.readers[reader.index];
        let (name, client) = (&channel.name, &self.clients[state.client].name);
        let at = state.holes.iter().position(|hole| hole.has(position));
        let Some(hole) = at.and_then(|at| state.holes.remove(at)) else {
            self.findings.duplicated += 1;
            self.findings
                .example(|| format!("{client}, {name}: {position} came again"));
            return;
        };
        let parts = [
            Hole {
                last: Offset(position.offset.0 - 1),
                ..hole
            },
            Hole {
                first: position.offset.next(),
                ..hole
            },
        ];
        state
            .holes
            .extend(parts.into_iter().filter(|part| part.size() > 0));
        self.findings.reordered += 1;
        self.findings
            .example(|| format!("{client}, {name}: {position} came after later ones"));
    }

    /// Closes what every client has passed.
    pub(super) fn compact(&mut self) {
        for at in 0..self.channels.len() {
            self.compact_channel(at);
        }
    }

    fn compact_channel(&mut self, at: usize) {
        let channel = &self.channels[at];
        let standings: Vec<_> = channel
            .readers
            .iter()
            .map(|reader| channel.standing(reader))
            .collect();
        let mut over = 0;
        for index in 0..channel.lives.len() {
            // As far as the last of them has come in this life.
            let passed = standings.iter().map(|standing| match standing {
                Some((life, _)) if *life > index => Offset(u64::MAX),
                Some((life, offset)) if *life == index => *offset,
                _ => Offset::ZERO,
            });
            let passed = passed.min().unwrap_or(Offset::ZERO);
            self.close(at, index, passed);
            let life = &self.channels[at].lives[index];
            if passed == Offset(u64::MAX) && life.log.is_empty() && over == index {
                over += 1;
            }
        }
        self.channels[at].lives.drain(..over);
    }

    /// Closes one life of a channel up to an offset, or to the first
    /// publication that still waits for its answer.
    fn close(&mut self, at: usize, index: usize, passed: Offset) {
        let Channel { name, lives, .. } = &mut self.channels[at];
        let life = &mut lives[index];
        while let Some(first) = life.log.first_entry()
            && *first.key() <= passed
        {
            let (offset, content) = (*first.key(), *first.get());
            if let Content::Ours(number) = content
                && let Some(publication) = self.publications.get(&number)
            {
                let Some((outcome, answered)) = publication.answer else {
                    life.closed = Offset(offset.0 - 1).max(life.closed);
                    return;
                };
                // What precedes it had not been sent when this was acknowledged.
                if outcome == Outcome::Accepted && life.sent_max > answered {
                    self.findings.reordered += 1;
                    let epoch = life.epoch;
                    self.findings.example(|| {
                        format!("{name}: {number}, at {epoch}-{offset}, was acknowledged before one that precedes it was sent")
                    });
                }
                life.sent_max = life.sent_max.max(publication.sent);
                self.publications.remove(&number);
            }
            life.log.pop_first();
            life.closed = offset;
        }
        life.closed = life.closed.max(passed.min(life.head));
    }

    /// Whether every client is attached to its channels.
    pub(super) fn all_attached(&self) -> bool {
        self.readers().all(|(_, reader)| reader.cursor.is_some())
    }

    fn readers(&self) -> impl Iterator<Item = (&Channel, &State)> {
        self.channels
            .iter()
            .flat_map(|channel| channel.readers.iter().map(move |reader| (channel, reader)))
    }

    /// Whether nothing is to come any more, if every promise holds.
    pub(super) fn is_complete(&self) -> bool {
        self.publications.values().all(|known| match known.answer {
            None => false,
            Some((Outcome::Accepted, _)) => self.missing(known).next().is_none(),
            Some(_) => true,
        }) && self
            .readers()
            .all(|(channel, reader)| channel.behind(reader) == 0)
            && self.clients.iter().all(|client| client.connected)
    }

    /// The readers that should have got a publication which nobody got.
    fn missing(&self, publication: &Publication) -> impl Iterator<Item = &State> {
        let is_seen = publication.position.is_some();
        let readers = self.channels[publication.channel].readers.iter();
        readers.filter(move |reader| {
            // It may be in any gap that was announced after it was sent.
            let told = reader.gap.is_some_and(|gap| gap >= publication.sent);
            !is_seen && !told && self.clients[reader.client].connected
        })
    }

    /// Clients without a connection.
    pub(super) fn unreachable(&self) -> Vec<&str> {
        let clients = self.clients.iter().filter(|client| !client.connected);
        clients.map(|client| client.name.as_str()).collect()
    }

    /// Judges what is still open, when nothing more is waited for.
    pub(super) fn finish(mut self) -> (Findings, Histogram<u64>) {
        self.compact();
        for at in 0..self.channels.len() {
            for index in 0..self.channels[at].readers.len() {
                let reader = Reader { channel: at, index };
                self.finish_reader(reader);
            }
        }
        let mut unseen = Vec::new();
        for (number, publication) in &self.publications {
            if matches!(publication.answer, Some((Outcome::Accepted, _))) {
                let missing: BTreeSet<_> = self.missing(publication).map(|r| r.client).collect();
                if !missing.is_empty() {
                    unseen.push((*number, publication.channel, missing.len() as u64));
                }
            }
        }
        unseen.sort_unstable();
        for (number, channel, clients) in unseen {
            self.findings.lost += clients;
            let name = &self.channels[channel].name;
            self.findings
                .example(|| format!("{name}: {number} was acknowledged, and nobody got it"));
        }
        (self.findings, self.delays)
    }

    fn finish_reader(&mut self, reader: Reader) {
        let state = &mut self.channels[reader.channel].readers[reader.index];
        let (holes, leaps) = (
            std::mem::take(&mut state.holes),
            std::mem::take(&mut state.leaps),
        );
        for hole in holes {
            self.judge_hole(reader, hole);
        }
        let channel = &self.channels[reader.channel];
        let state = &channel.readers[reader.index];
        let client = &self.clients[state.client];
        let (name, who) = (&channel.name, &client.name);
        for leap in leaps {
            self.findings.silent_gaps += 1;
            self.findings.example(|| {
                format!("{who}, {name}: came to {leap}, another epoch, and was not told")
            });
        }
        let behind = channel.behind(state);
        if behind > 0 && client.connected {
            self.findings.lost += behind;
            let cursor = state.cursor;
            self.findings
                .example(|| format!("{who}, {name}: {behind} did not come after {cursor:?}"));
        }
    }
}

fn leave(state: &mut State, epoch: Epoch) {
    state.left.push_back(epoch);
    if state.left.len() > LEFT_MAX {
        state.left.pop_front();
    }
}
