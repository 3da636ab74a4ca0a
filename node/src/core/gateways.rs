//! Which gateways there are: for each, its present life, and when it was last
//! heard of.
//!
//! A gateway that is silent for a minute is forgotten, with its interest: nobody
//! else would ever end it. That is no judgement that could harm one which lives
//! after all: it goes on to beat, the owner sees that it wants more than is
//! known, and asks it to restate. Only silence that we would have heard counts:
//! while our own beats do not come back to us, everybody is silent.
//!
//! Long before that it is silent, and this node [says so](Gateways::report) to the
//! leader. What comes of it is not for this node to decide: only who is
//! [declared gone](Gateways::lose) is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proto::id::{ClusterUuid, GatewayId, GatewayRef, Incarnation};
use proto::inspection::GatewayInfo;
use proto::message::GatewayBeat;
use proto::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::gone::Gone;
use super::pace::Pace;
use super::shard::Around;

/// Gateways that are known at most. When there are more, the one that has been
/// silent for longest is forgotten.
pub const GATEWAYS_MAX: usize = 4_096;
/// How recently a gateway was heard of that counts as present. It beats every
/// 500 ms.
const PRESENT: Duration = Duration::from_secs(2);
/// After how much silence a gateway is forgotten. Longer than a reconnect; and
/// until then every publication that it followed is sent to nobody.
const FORGET: Duration = Duration::from_secs(60);
/// After how long without an echo the bus counts as away. We beat every 500 ms.
const ECHO: Duration = Duration::from_secs(2);
/// After how long without an echo we say nothing of anybody's silence. A bus that
/// is away for less keeps no gateway silent for [`SILENT`].
const DEAF: Duration = Duration::from_secs(1);
/// After how much silence of a gateway the voters are told.
const SILENT: Duration = Duration::from_secs(2);
/// How much longer gateways may need to come back to the bus than we.
const SETTLE: Duration = Duration::from_secs(2);
/// How often the log speaks of strangers.
const COMPLAIN: Duration = Duration::from_secs(10);

/// See the [module](self).
#[derive(Debug)]
pub struct Gateways {
    known: BTreeMap<GatewayId, Gateway>,
    echo: Option<Echo>,
    gone: Arc<Gone>,
    /// Whether there was something to complain of when the leader was told last.
    reported: bool,
    complaint: Pace,
}

#[derive(Debug)]
struct Gateway {
    incarnation: Incarnation,
    heard_at: Timestamp,
    map_version: u64,
    connections: u32,
    /// When this life beat last; if never, it may be silent for good reason.
    beat_at: Option<Timestamp>,
}

/// What a node hears of gateways' silence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silence {
    /// Whether its own beats come back to it from the bus. If not, everybody is
    /// silent to it.
    pub hears_echo: bool,
    /// Those that have been silent for too long.
    pub gateways: BTreeSet<GatewayRef>,
}

#[derive(Debug, Clone, Copy)]
struct Echo {
    last: Timestamp,
    /// It has come without a break since then.
    since: Timestamp,
    /// It has come often enough since then to say of others that they are silent.
    keen_since: Timestamp,
}

/// What to make of something that came from a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// It is as it was.
    Known,
    /// A life that has not been heard of: earlier ones are void.
    New,
    /// A life that a later one has voided. It is told so, and nothing of what
    /// it says counts.
    Gone {
        /// The later one.
        newer: Incarnation,
    },
    /// A life that was declared gone. It is told so, and nothing of what it says
    /// counts.
    DeclaredGone {
        /// The last life that was.
        through: Incarnation,
    },
    /// A gateway of another cluster that has our name. Nothing of what it says
    /// counts.
    Stranger {
        /// Whether it is time to say so in the log.
        log: bool,
    },
}

impl Default for Gateways {
    fn default() -> Self {
        Self {
            known: BTreeMap::new(),
            echo: None,
            gone: Arc::default(),
            reported: false,
            complaint: Pace::new(COMPLAIN),
        }
    }
}

impl Gateways {
    /// A gateway has asked for something.
    pub fn asked(&mut self, now: Timestamp, from: &GatewayRef, map_version: u64) -> Heard {
        let heard = self.hear(now, from);
        if let Some(known) = self.life(from) {
            known.map_version = map_version;
        }
        heard
    }

    /// A gateway has beaten.
    pub fn beat(&mut self, now: Timestamp, ours: ClusterUuid, beat: &GatewayBeat) -> Heard {
        if beat.cluster != ours {
            let log = self.complaint.allows(now);
            return Heard::Stranger { log };
        }
        let heard = self.hear(now, &beat.from);
        if let Some(known) = self.life(&beat.from) {
            known.map_version = beat.map_version;
            known.connections = beat.connections;
            known.beat_at = Some(now);
        }
        heard
    }

    /// Whether a gateway is known, in this life.
    pub fn knows(&self, gateway: &GatewayRef) -> bool {
        let known = self.known.get(&gateway.id);
        known.is_some_and(|known| known.incarnation == gateway.incarnation)
    }

    /// Our own beat has come back.
    pub fn echo(&mut self, now: Timestamp) {
        let since = match self.echo {
            Some(echo) if now.since(echo.last) < ECHO => echo.since,
            _ => now,
        };
        let keen_since = match self.echo {
            Some(echo) if now.since(echo.last) < DEAF => echo.keen_since,
            _ => now,
        };
        self.echo = Some(Echo {
            last: now,
            since,
            keen_since,
        });
    }

    /// Which of them are there, and since when others would be heard.
    pub fn around(&self, now: Timestamp) -> Around {
        let there = self
            .known
            .iter()
            .filter(|(_, known)| known.beat_at.is_some());
        let life = |(id, known): (&GatewayId, &Gateway)| GatewayRef {
            id: id.clone(),
            incarnation: known.incarnation,
        };
        let echo = self.echo.filter(|echo| now.since(echo.last) < ECHO);
        Around {
            gateways: there.map(life).collect(),
            hears_since: echo.map(|echo| echo.since),
        }
    }

    /// The next gateway that is forgotten now: it counts as gone.
    pub fn forget(&mut self, now: Timestamp) -> Option<GatewayRef> {
        let heard_at = |(_, gateway): &(&GatewayId, &Gateway)| gateway.heard_at;
        let one = if self.known.len() > GATEWAYS_MAX {
            self.known.iter().min_by_key(heard_at)
        } else {
            let from = self.echo.filter(|echo| now.since(echo.last) < ECHO)?.since;
            let silent = |gateway: &Gateway| now.since(gateway.heard_at.max(from)) >= FORGET;
            let mut known = self.known.iter();
            known.find(|(_, gateway)| gateway.beat_at.is_some() && silent(gateway))
        };
        let id = one?.0.clone();
        let incarnation = self.known.remove(&id)?.incarnation;
        Some(GatewayRef { id, incarnation })
    }

    /// These are gone, as is agreed. Those of them that were not before.
    pub fn lose(&mut self, gone: &Arc<Gone>) -> Vec<GatewayRef> {
        if Arc::ptr_eq(gone, &self.gone) {
            return Vec::new();
        }
        let before = std::mem::replace(&mut self.gone, Arc::clone(gone));
        let lost: Vec<GatewayRef> = gone.since(&before).collect();
        for gateway in &lost {
            let known = self.known.get(&gateway.id);
            if known.is_some_and(|known| known.incarnation <= gateway.incarnation) {
                self.known.remove(&gateway.id);
            }
        }
        lost
    }

    /// What is to be said to the leader: that this node does not hear itself, or who
    /// is silent, as long as that is so, and once that it is not any more.
    pub fn report(&mut self, now: Timestamp) -> Option<Silence> {
        let silence = Silence {
            hears_echo: self.hears_echo(now),
            gateways: self.silent(now).into_iter().collect(),
        };
        let is_any = !silence.gateways.is_empty() || !silence.hears_echo;
        let before = std::mem::replace(&mut self.reported, is_any);
        (is_any || before).then_some(silence)
    }

    /// Whether our own beats come back to us, so that silence means something.
    fn hears_echo(&self, now: Timestamp) -> bool {
        self.echo.is_some_and(|echo| now.since(echo.last) < DEAF)
    }

    /// Those that have beaten and are silent: for two seconds from their last
    /// beat, or from two seconds after our own echo came back. That every one of
    /// them has beaten since this node started spares counting from the start.
    fn silent(&self, now: Timestamp) -> Vec<GatewayRef> {
        let Some(echo) = self.echo.filter(|_| self.hears_echo(now)) else {
            return Vec::new();
        };
        let from = echo.keen_since + SETTLE;
        let silent = self.known.iter().filter(|(_, gateway)| {
            let beat_at = gateway.beat_at;
            beat_at.is_some_and(|beat_at| now.since(beat_at.max(from)) >= SILENT)
        });
        let life = |(id, gateway): (&GatewayId, &Gateway)| GatewayRef {
            id: id.clone(),
            incarnation: gateway.incarnation,
        };
        silent.map(life).collect()
    }

    /// How many are present.
    pub fn present(&self, now: Timestamp) -> usize {
        let known = self.known.values();
        known
            .filter(|gateway| now.since(gateway.heard_at) < PRESENT)
            .count()
    }

    /// All that are known, for those who look inside. Fits a message, for there
    /// are never more than [`GATEWAYS_MAX`].
    pub fn describe(&self, now: Timestamp) -> Vec<GatewayInfo> {
        let info = |(id, gateway): (&GatewayId, &Gateway)| GatewayInfo {
            name: id.clone(),
            incarnation: gateway.incarnation,
            heard_ms: now.since(gateway.heard_at).as_millis() as u64,
            map_version: gateway.map_version,
            connections: gateway.connections,
        };
        self.known.iter().map(info).collect()
    }

    fn hear(&mut self, now: Timestamp, from: &GatewayRef) -> Heard {
        let through = self.gone.through(from);
        let known = self.known.get_mut(&from.id);
        match known {
            Some(known) if from.incarnation < known.incarnation => Heard::Gone {
                newer: known.incarnation,
            },
            Some(known) if from.incarnation == known.incarnation => {
                known.heard_at = now;
                Heard::Known
            }
            _ if let Some(through) = through => Heard::DeclaredGone { through },
            _ => {
                let gateway = Gateway {
                    incarnation: from.incarnation,
                    heard_at: now,
                    map_version: 0,
                    connections: 0,
                    beat_at: None,
                };
                self.known.insert(from.id.clone(), gateway);
                Heard::New
            }
        }
    }

    fn life(&mut self, of: &GatewayRef) -> Option<&mut Gateway> {
        let known = self.known.get_mut(&of.id);
        known.filter(|known| known.incarnation == of.incarnation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::codec::{self, PAYLOAD_BYTES_MAX};
    use proto::id::{ID_BYTES_MAX, NodeRef};
    use proto::inspection::Answer;
    use proto::message::{Message, Replies, Reply};

    const OURS: ClusterUuid = ClusterUuid(1);

    fn gateway(id: &str, incarnation: u64) -> GatewayRef {
        GatewayRef {
            id: id.parse().unwrap(),
            incarnation: Incarnation(incarnation),
        }
    }

    fn beat(from: GatewayRef, connections: u32) -> GatewayBeat {
        GatewayBeat {
            from,
            cluster: OURS,
            map_version: 3,
            namespaces: 0,
            connections,
            interest: Vec::new(),
        }
    }

    /// Echoes from one time to another.
    fn echo(gateways: &mut Gateways, from: u64, to: u64) {
        for at in (from..=to).step_by(500) {
            gateways.echo(Timestamp(at));
        }
    }

    #[test]
    fn a_higher_incarnation_is_new_and_a_lower_one_is_gone() {
        let mut gateways = Gateways::default();
        let now = Timestamp(0);
        assert_eq!(gateways.asked(now, &gateway("g", 2), 1), Heard::New);
        assert_eq!(gateways.asked(now, &gateway("g", 2), 1), Heard::Known);
        let newer = gateway("g", 3);
        assert_eq!(gateways.beat(now, OURS, &beat(newer, 7)), Heard::New);
        let gone = Heard::Gone {
            newer: Incarnation(3),
        };
        assert_eq!(gateways.asked(now, &gateway("g", 2), 99), gone);
        assert_eq!(gateways.beat(now, OURS, &beat(gateway("g", 2), 99)), gone);
        assert!(gateways.knows(&gateway("g", 3)) && !gateways.knows(&gateway("g", 2)));
        let info = &gateways.describe(Timestamp(40))[0];
        let seen = (info.incarnation.0, info.map_version, info.connections);
        assert_eq!(seen, (3, 3, 7), "what is gone changes nothing");
        assert_eq!(info.heard_ms, 40);
    }

    #[test]
    fn beats_of_another_cluster_count_for_nothing_and_are_seldom_logged() {
        let mut gateways = Gateways::default();
        let stranger = GatewayBeat {
            cluster: ClusterUuid(2),
            ..beat(gateway("g", 1), 1)
        };
        let mut hear = |at| gateways.beat(Timestamp(at), OURS, &stranger);
        assert_eq!(hear(0), Heard::Stranger { log: true });
        assert_eq!(hear(9_999), Heard::Stranger { log: false });
        assert_eq!(hear(10_000), Heard::Stranger { log: true });
        assert_eq!(gateways.describe(Timestamp(0)), []);
    }

    #[test]
    fn those_heard_of_lately_are_present() {
        let mut gateways = Gateways::default();
        gateways.asked(Timestamp(0), &gateway("a", 1), 1);
        gateways.asked(Timestamp(1_000), &gateway("b", 1), 1);
        assert_eq!(gateways.present(Timestamp(1_999)), 2);
        assert_eq!(gateways.present(Timestamp(2_000)), 1);
        assert_eq!(gateways.present(Timestamp(3_000)), 0);
    }

    #[test]
    fn one_that_has_beaten_and_is_silent_for_long_is_forgotten() {
        let mut gateways = Gateways::default();
        gateways.beat(Timestamp(0), OURS, &beat(gateway("a", 1), 0));
        gateways.asked(Timestamp(0), &gateway("b", 1), 1);
        echo(&mut gateways, 0, 60_000);
        assert_eq!(gateways.forget(Timestamp(59_999)), None);
        assert_eq!(gateways.forget(Timestamp(60_000)), Some(gateway("a", 1)));
        assert_eq!(gateways.forget(Timestamp(60_000)), None, "b never beats");
    }

    #[test]
    fn silence_while_the_bus_is_away_does_not_count() {
        let mut gateways = Gateways::default();
        gateways.beat(Timestamp(0), OURS, &beat(gateway("a", 1), 0));
        assert_eq!(gateways.forget(Timestamp(900_000)), None, "no echo at all");
        echo(&mut gateways, 900_000, 950_000);
        assert_eq!(gateways.forget(Timestamp(953_000)), None, "no echo now");
        echo(&mut gateways, 953_000, 1_013_000);
        assert_eq!(
            gateways.forget(Timestamp(1_012_999)),
            None,
            "a break between"
        );
        assert_eq!(gateways.forget(Timestamp(1_013_000)), Some(gateway("a", 1)));
    }

    #[test]
    fn one_that_does_not_beat_is_silent_whatever_it_asks() {
        let mut gateways = Gateways::default();
        echo(&mut gateways, 0, 9_500);
        gateways.beat(Timestamp(6_000), OURS, &beat(gateway("a", 1), 0));
        gateways.asked(Timestamp(7_000), &gateway("a", 1), 1);
        gateways.asked(Timestamp(7_000), &gateway("b", 1), 1);
        assert_eq!(gateways.silent(Timestamp(7_999)), []);
        assert_eq!(gateways.silent(Timestamp(8_000)), [gateway("a", 1)]);
        gateways.beat(Timestamp(8_000), OURS, &beat(gateway("a", 2), 0));
        assert_eq!(gateways.silent(Timestamp(9_999)), []);
        assert_eq!(gateways.silent(Timestamp(10_000)), [gateway("a", 2)]);
    }

    #[test]
    fn a_bus_that_was_away_keeps_nobody_silent() {
        let mut gateways = Gateways::default();
        assert!(!gateways.hears_echo(Timestamp(0)));
        echo(&mut gateways, 0, 5_000);
        gateways.beat(Timestamp(5_000), OURS, &beat(gateway("a", 1), 0));
        assert!(gateways.hears_echo(Timestamp(5_999)));
        assert!(!gateways.hears_echo(Timestamp(6_000)));
        assert_eq!(gateways.silent(Timestamp(9_000)), [], "we are deaf");
        echo(&mut gateways, 9_000, 13_000);
        assert_eq!(gateways.silent(Timestamp(12_999)), []);
        assert_eq!(gateways.silent(Timestamp(13_000)), [gateway("a", 1)]);
    }

    #[test]
    fn the_leader_is_told_as_long_as_somebody_is_silent_and_once_more() {
        let mut gateways = Gateways::default();
        echo(&mut gateways, 0, 8_000);
        gateways.beat(Timestamp(6_000), OURS, &beat(gateway("a", 1), 0));
        assert_eq!(gateways.report(Timestamp(7_999)), None);
        let silence = |of: &[GatewayRef]| {
            Some(Silence {
                hears_echo: true,
                gateways: of.iter().cloned().collect(),
            })
        };
        for at in [8_000, 8_250] {
            assert_eq!(gateways.report(Timestamp(at)), silence(&[gateway("a", 1)]));
        }
        gateways.beat(Timestamp(8_300), OURS, &beat(gateway("a", 1), 0));
        assert_eq!(gateways.report(Timestamp(8_500)), silence(&[]));
        assert_eq!(gateways.report(Timestamp(8_750)), None);
    }

    #[test]
    fn whoever_was_declared_gone_is_told_so_until_it_has_another_life() {
        let mut gateways = Gateways::default();
        let now = Timestamp(0);
        gateways.beat(now, OURS, &beat(gateway("a", 1), 0));
        gateways.beat(now, OURS, &beat(gateway("b", 2), 0));
        let mut gone = Gone::default();
        gone.declare(5, gateway("a", 1));
        gone.declare(5, gateway("b", 1));
        let gone = Arc::new(gone);
        let lost = gateways.lose(&gone);
        assert_eq!(lost, [gateway("a", 1), gateway("b", 1)]);
        assert_eq!(gateways.lose(&gone), [], "once");
        let through = Incarnation(1);
        let told = Heard::DeclaredGone { through };
        assert_eq!(gateways.asked(now, &gateway("a", 1), 1), told);
        assert_eq!(gateways.beat(now, OURS, &beat(gateway("a", 1), 0)), told);
        let known: Vec<_> = gateways.describe(now);
        assert_eq!(known.len(), 1, "b lives another life");
        assert_eq!(gateways.asked(now, &gateway("a", 2), 1), Heard::New);
        let newer = Incarnation(2);
        let superseded = Heard::Gone { newer };
        assert_eq!(gateways.asked(now, &gateway("a", 1), 1), superseded);
    }

    #[test]
    fn the_one_that_is_silent_for_longest_makes_room_and_all_fit_a_message() {
        let mut gateways = Gateways::default();
        let name = |n: usize| format!("{n:0ID_BYTES_MAX$}");
        for n in 0..GATEWAYS_MAX {
            let at = if n == 9 { 0 } else { 1 + n as u64 };
            let mut beat = beat(gateway(&name(n), u64::MAX), u32::MAX);
            beat.map_version = u64::MAX;
            gateways.beat(Timestamp(at), OURS, &beat);
        }
        let now = Timestamp(10_000);
        assert_eq!(gateways.forget(now), None);
        let reply = Reply::Inspected {
            id: u64::MAX,
            answer: Answer::Gateways(gateways.describe(Timestamp(u64::MAX))),
        };
        let message = Message::Replies(Replies {
            from: NodeRef {
                id: name(0).parse().unwrap(),
                incarnation: Incarnation(u64::MAX),
            },
            to: Incarnation(u64::MAX),
            map_version: u64::MAX,
            replies: vec![reply],
        });
        assert!(codec::encode(&message).len() <= PAYLOAD_BYTES_MAX);
        gateways.asked(now, &gateway("one-more", 1), 1);
        let forgotten = gateways.forget(now).expect("one makes room");
        assert_eq!(forgotten.id.as_str(), name(9));
        assert_eq!(gateways.forget(now), None);
    }
}
