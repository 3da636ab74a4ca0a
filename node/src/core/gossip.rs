//! Gossip between nodes: who seems to be there, and what nodes say of
//! themselves: where they are, their zone, version and number of shards. `foca`
//! decides whom to ask, whom to suspect and what to pass on.
//!
//! Advice: no decision is triggered by it. Two may wait for it: a namesake takes
//! a lost node's place when gossip has given that up, and who has been given up
//! is not made to vote.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use foca::{
    AccumulatingRuntime, BroadcastHandler, Config, Foca, Identity, Invalidates, OwnedNotification,
    PeriodicParams, PostcardCodec, State, Timer,
};
use proto::id::{Incarnation, NodeId};
use proto::time::{Timers, Timestamp};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

use super::cluster::RaftId;

/// Bytes of a datagram: what every path takes (RFC 9000, section 14, less what
/// QUIC needs of it).
const PACKET_BYTES_MAX: NonZeroUsize = NonZeroUsize::new(1_100).expect("not zero");

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct News {
    /// Its data directory.
    pub raft_id: RaftId,
    /// Its present life.
    pub incarnation: Incarnation,
    /// Counts the news of one life.
    pub edition: u64,
    /// Its name.
    pub name: NodeId,
    /// Where other nodes reach it.
    pub address: String,
    /// Where it stands.
    pub zone: String,
    /// The version of its program.
    pub version: String,
    /// Its load, as far as that is known: shards that it owns.
    pub shards: u32,
}

/// What is heard of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rumour {
    /// `alive`, `suspect` or `down`.
    pub state: &'static str,
    /// What it said last.
    pub news: Option<News>,
}

impl Rumour {
    /// Whether it has not been given up.
    pub fn is_seen(&self) -> bool {
        self.state != DOWN
    }
}

/// What is heard of a node that was given up.
const DOWN: &str = "down";
/// For how long a member is called in vain before it is given up. `foca` says
/// nothing of nodes that had died before this one began, and forgets in time
/// those that died since.
const MISSING: Duration = Duration::from_secs(5);
/// What is heard of a node that does not answer.
const SUSPECT: &str = "suspect";

/// What is heard of all nodes.
pub type Rumours = BTreeMap<RaftId, Rumour>;

/// When something new was last heard of each node, and who is suspected.
#[derive(Debug, Default)]
pub struct Freshness(BTreeMap<RaftId, Fresh>);

#[derive(Debug)]
struct Fresh {
    edition: Option<(Incarnation, u64)>,
    heard_at: Timestamp,
    is_suspect: bool,
}

impl Freshness {
    /// This is what is heard now: how many nodes are suspected that were not
    /// before.
    pub fn hear(&mut self, now: Timestamp, rumours: &Rumours) -> u64 {
        self.0.retain(|node, _| rumours.contains_key(node));
        let mut suspicions = 0;
        for (node, rumour) in rumours {
            let edition = rumour.news.as_ref().map(|n| (n.incarnation, n.edition));
            let fresh = self.0.entry(*node).or_insert(Fresh {
                edition,
                heard_at: now,
                is_suspect: false,
            });
            if fresh.edition != edition {
                (fresh.edition, fresh.heard_at) = (edition, now);
            }
            let is_suspect = rumour.state == SUSPECT;
            suspicions += u64::from(is_suspect && !fresh.is_suspect);
            fresh.is_suspect = is_suspect;
        }
        suspicions
    }

    /// For how long nothing new has been heard of one that has not been given up,
    /// and speaks of itself to others.
    pub fn oldest(&self, now: Timestamp, rumours: &Rumours) -> Duration {
        let seen = |node: &RaftId| rumours.get(node).is_some_and(Rumour::is_seen);
        let others = self.0.iter().filter(|(node, _)| seen(node));
        let ages = others.map(|(_, fresh)| now.since(fresh.heard_at));
        ages.max().unwrap_or_default()
    }
}

/// Who the members are, and in which life.
pub type Members = Vec<(RaftId, Incarnation)>;

/// What gossip is told.
#[derive(Debug)]
pub enum Input<'a> {
    /// Who should be there, from now on.
    Members(Members),
    /// What this node says of itself, from now on; the edition is counted here.
    News(News),
    /// A datagram has come.
    Datagram(&'a [u8]),
    /// Time has passed; comes every 20 ms or so.
    Tick,
    /// Time to tell of this node, and to call out to nodes that are missing: a
    /// single announcement can be lost. Comes every second.
    Tell,
    /// This node ends. Said once; whoever misses it finds out by probing.
    Leave,
}

/// What is to be done.
#[derive(Debug)]
pub enum Effect {
    /// Send a datagram, if it is known where the node is.
    Send {
        /// To which node.
        to: RaftId,
        /// The datagram.
        bytes: Bytes,
    },
    /// A member is here now: one that has moved may not have called this node
    /// since.
    Address {
        /// Which one.
        node: RaftId,
        /// Where.
        address: String,
    },
    /// This is what is heard of all nodes; often the same as before.
    Rumours(Rumours),
    /// Log, for debugging.
    Noticed(OwnedNotification<Gossiper>),
    /// Log, for debugging: something was not understood.
    Failed(foca::Error),
}

/// A node in one of its lives, as gossip names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gossiper {
    /// Its data directory.
    pub raft_id: RaftId,
    incarnation: u64,
    /// Rises when the others have given this life up for dead by mistake.
    comeback: u32,
}

impl Identity for Gossiper {
    type Addr = RaftId;

    fn renew(&self) -> Option<Self> {
        Some(Self {
            comeback: self.comeback.wrapping_add(1),
            ..self.clone()
        })
    }

    fn addr(&self) -> RaftId {
        self.raft_id
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        (self.incarnation, self.comeback) > (adversary.incarnation, adversary.comeback)
    }
}

/// Newer news of a node replace older ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Edition {
    raft_id: RaftId,
    at: (Incarnation, u64),
}

impl Invalidates for Edition {
    fn invalidates(&self, other: &Self) -> bool {
        self.raft_id == other.raft_id && self.at > other.at
    }
}

/// What members said last. Of others nothing is kept or passed on: they may
/// call themselves anything.
#[derive(Debug, Clone, Default)]
struct Newspaper(Arc<Mutex<Heard>>);

/// Shared by `foca`, which hears, and by whoever shows.
#[derive(Debug, Default)]
struct Heard {
    members: Members,
    latest: BTreeMap<RaftId, News>,
}

impl Heard {
    fn is_member(&self, node: RaftId) -> bool {
        self.members.iter().any(|(raft_id, _)| *raft_id == node)
    }
}

impl Newspaper {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that are not news.
#[derive(Debug, thiserror::Error)]
#[error("not news of a node: {0}")]
pub struct NotNews(rmp_serde::decode::Error);

impl BroadcastHandler<Gossiper> for Newspaper {
    type Key = Edition;
    type Error = NotNews;

    fn receive_item(
        &mut self,
        data: &[u8],
        _sender: Option<&Gossiper>,
    ) -> Result<Option<Edition>, NotNews> {
        let news: News = rmp_serde::from_slice(data).map_err(NotNews)?;
        let mut heard = self.heard();
        if !heard.is_member(news.raft_id) {
            return Ok(None);
        }
        let edition = Edition {
            raft_id: news.raft_id,
            at: (news.incarnation, news.edition),
        };
        let known = heard.latest.get(&news.raft_id);
        if known.is_some_and(|known| (known.incarnation, known.edition) >= edition.at) {
            return Ok(None);
        }
        heard.latest.insert(news.raft_id, news);
        Ok(Some(edition))
    }
}

/// See the [module](self).
pub struct Gossip {
    me: Gossiper,
    own: News,
    edition: u64,
    newspaper: Newspaper,
    foca: Foca<Gossiper, PostcardCodec, StdRng, Newspaper>,
    runtime: AccumulatingRuntime<Gossiper>,
    timers: Timers<Timer<Gossiper>>,
    /// Members that are called in vain, and since when.
    missing_since: BTreeMap<RaftId, Timestamp>,
}

impl std::fmt::Debug for Gossip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Gossip");
        shown.field("me", &self.me).field("timers", &self.timers);
        shown.finish_non_exhaustive()
    }
}

impl Gossip {
    /// A node that has heard of no other. The seed is for choices that should
    /// differ between nodes.
    pub fn new(own: News, members: Members, seed: u64) -> Self {
        let me = Gossiper {
            raft_id: own.raft_id,
            incarnation: own.incarnation.0,
            comeback: 0,
        };
        let newspaper = Newspaper::default();
        newspaper.heard().members = members;
        let mut config = Config::simple();
        config.max_packet_size = PACKET_BYTES_MAX;
        config.notify_down_members = true;
        config.periodic_gossip = Some(PeriodicParams {
            frequency: Duration::from_millis(500),
            num_members: NonZeroUsize::new(3).expect("not zero"),
        });
        let foca = Foca::with_custom_broadcast(
            me.clone(),
            config,
            StdRng::seed_from_u64(seed),
            PostcardCodec,
            newspaper.clone(),
        );
        Self {
            me,
            own,
            edition: 0,
            newspaper,
            foca,
            runtime: AccumulatingRuntime::new(),
            timers: Timers::default(),
            missing_since: BTreeMap::new(),
        }
    }

    /// Applies one input. The only way gossip changes.
    pub fn handle(&mut self, now: Timestamp, input: Input<'_>, effects: &mut Vec<Effect>) {
        match input {
            Input::Members(members) => self.newspaper.heard().members = members,
            Input::News(news) => self.own = news,
            Input::Datagram(bytes) => {
                if let Err(error) = self.foca.handle_data(bytes, &mut self.runtime) {
                    effects.push(Effect::Failed(error));
                }
            }
            Input::Tick => {
                while let Some(timer) = self.timers.pop_due(now) {
                    // Fails for members that have gone since.
                    let _ = self.foca.handle_timer(timer, &mut self.runtime);
                }
            }
            Input::Tell => self.tell(now, effects),
            Input::Leave => {
                let _ = self.foca.leave_cluster(&mut self.runtime);
            }
        }
        self.conclude(now, effects);
    }

    fn tell(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        self.edition += 1;
        let own = News {
            edition: self.edition,
            ..self.own.clone()
        };
        let bytes = rmp_serde::to_vec(&own).expect("our types always encode into memory");
        if let Err(error) = self.foca.add_broadcast(&bytes) {
            effects.push(Effect::Failed(error));
        }
        self.call_missing(now);
        self.read(effects);
        effects.push(Effect::Rumours(self.rumours(now)));
    }

    /// Announces this node to members that gossip does not know of.
    fn call_missing(&mut self, now: Timestamp) {
        let members = self.newspaper.heard().members.clone();
        let mut before = std::mem::take(&mut self.missing_since);
        for (raft_id, incarnation) in members {
            let known = self
                .foca
                .iter_members()
                .any(|member| member.id().raft_id == raft_id);
            if raft_id != self.me.raft_id && !known {
                let missing = Gossiper {
                    raft_id,
                    incarnation: incarnation.0,
                    comeback: 0,
                };
                let since = before.remove(&raft_id).unwrap_or(now);
                self.missing_since.insert(raft_id, since);
                // Fails only for packets that are too large, and this is small.
                let _ = self.foca.announce(missing, &mut self.runtime);
            }
        }
    }

    /// Forgets whoever is no member, and says where the members are now.
    fn read(&self, effects: &mut Vec<Effect>) {
        let mut heard = self.newspaper.heard();
        let Heard { members, latest } = &mut *heard;
        latest.retain(|node, _| members.iter().any(|(raft_id, _)| raft_id == node));
        for news in latest.values() {
            // Of its present life: in an earlier one it may have been elsewhere.
            if members.contains(&(news.raft_id, news.incarnation)) {
                effects.push(Effect::Address {
                    node: news.raft_id,
                    address: news.address.clone(),
                });
            }
        }
    }

    fn rumours(&self, now: Timestamp) -> Rumours {
        let heard = self.newspaper.heard();
        let rumour = |member: &foca::Member<Gossiper>| {
            let raft_id = member.id().raft_id;
            let state = match member.state() {
                State::Alive => "alive",
                State::Suspect => SUSPECT,
                State::Down => DOWN,
            };
            let news = heard.latest.get(&raft_id).cloned();
            (raft_id, Rumour { state, news })
        };
        let mut rumours: Rumours = self.foca.iter_membership_state().map(rumour).collect();
        for (raft_id, since) in &self.missing_since {
            if now.since(*since) >= MISSING {
                let news = heard.latest.get(raft_id).cloned();
                let given_up = Rumour { state: DOWN, news };
                rumours.entry(*raft_id).or_insert(given_up);
            }
        }
        let own = Rumour {
            state: "alive",
            news: Some(News {
                edition: self.edition,
                ..self.own.clone()
            }),
        };
        rumours.insert(self.me.raft_id, own);
        rumours
    }

    /// Passes on what `foca` wants.
    fn conclude(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let mut changed = false;
        while let Some(notification) = self.runtime.to_notify() {
            changed = true;
            effects.push(Effect::Noticed(notification));
        }
        if changed {
            effects.push(Effect::Rumours(self.rumours(now)));
        }
        while let Some((after, timer)) = self.runtime.to_schedule() {
            self.timers.set(now + after, timer);
        }
        while let Some((to, bytes)) = self.runtime.to_send() {
            effects.push(Effect::Send {
                to: to.raft_id,
                bytes,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(raft_id: RaftId, edition: u64) -> News {
        News {
            raft_id,
            incarnation: Incarnation(1),
            edition,
            name: "a".parse().unwrap(),
            address: String::new(),
            zone: String::new(),
            version: String::new(),
            shards: 0,
        }
    }

    #[test]
    fn news_of_members_are_taken_once_and_of_others_not_at_all() {
        let mut newspaper = Newspaper::default();
        newspaper.heard().members = vec![(1, Incarnation(1))];
        let mut is_taken = |raft_id, edition| {
            let bytes = rmp_serde::to_vec(&news(raft_id, edition)).unwrap();
            newspaper.receive_item(&bytes, None).unwrap().is_some()
        };
        assert!(is_taken(1, 1));
        assert!(!is_taken(1, 1));
        assert!(is_taken(1, 2));
        assert!(!is_taken(2, 1));
        assert_eq!(newspaper.heard().latest.len(), 1);
    }

    #[test]
    fn news_grow_old_and_suspicions_are_counted_once() {
        let rumour = |state, edition| Rumour {
            state,
            news: Some(news(1, edition)),
        };
        let mut freshness = Freshness::default();
        let mut hear = |at, state, edition| {
            let rumours = Rumours::from([(1, rumour(state, edition))]);
            let suspicions = freshness.hear(Timestamp(at), &rumours);
            let oldest = freshness.oldest(Timestamp(at), &rumours);
            (oldest.as_millis(), suspicions)
        };
        assert_eq!(hear(0, "alive", 1), (0, 0));
        assert_eq!(hear(1_000, "alive", 2), (0, 0));
        assert_eq!(hear(2_500, SUSPECT, 2), (1_500, 1));
        assert_eq!(hear(3_000, SUSPECT, 2), (2_000, 0));
        assert_eq!(hear(4_000, DOWN, 2), (0, 0), "it is given up");
        assert_eq!(hear(5_000, "alive", 3), (0, 0));
        assert_eq!(hear(6_000, SUSPECT, 4), (0, 1));
    }

    /// Those that died before it began: nobody speaks of them.
    #[test]
    fn a_member_that_is_called_in_vain_is_given_up() {
        let members: Members = vec![(1, Incarnation(1)), (2, Incarnation(1))];
        let mut gossip = Gossip::new(news(1, 0), members, 1);
        let mut told = |at| {
            let mut effects = Vec::new();
            gossip.handle(Timestamp(at), Input::Tell, &mut effects);
            let rumours = effects.into_iter().find_map(|effect| match effect {
                Effect::Rumours(rumours) => Some(rumours),
                _ => None,
            });
            let rumours = rumours.expect("it says what it has heard");
            rumours.get(&2).map(Rumour::is_seen)
        };
        assert_eq!(told(0), None, "it may come");
        assert_eq!(told(4_000), None);
        assert_eq!(told(5_000), Some(false));
    }

    #[test]
    fn a_node_calls_members_that_it_does_not_know_and_hears_of_them() {
        let members: Members = vec![(1, Incarnation(1)), (2, Incarnation(1))];
        let node = |id| Gossip::new(news(id, 0), members.clone(), id);
        let mut nodes = [node(1), node(2)];
        let mut mail = vec![(0, None)];
        let mut heard = [Rumours::new(), Rumours::new()];
        // Both tell of themselves, and what they say arrives at once.
        mail.push((1, None));
        while let Some((at, bytes)) = mail.pop() {
            let bytes: Option<Bytes> = bytes;
            let input = bytes.as_deref().map_or(Input::Tell, Input::Datagram);
            let mut effects = Vec::new();
            nodes[at].handle(Timestamp(0), input, &mut effects);
            for effect in effects {
                match effect {
                    Effect::Send { to, bytes } => mail.push((to as usize - 1, Some(bytes))),
                    Effect::Rumours(rumours) => heard[at] = rumours,
                    _ => {}
                }
            }
        }
        for rumours in heard {
            assert!(rumours[&1].is_seen() && rumours[&2].is_seen());
        }
    }
}
