//! Whether a gateway and the owner of a shard agree on what the gateway wants
//! there.
//!
//! ```text
//!              a beat says otherwise            the next one, too
//!   Agreed ──────────────────────────▶ Doubted ───────────────────▶ Restating
//!     ▲                                   │        ask to restate   │  │ again, at
//!     └──── the owner knows what the gateway last said ─────────────┘  ▼ each beat
//! ```
//!
//! Beats travel on another subject than joins, so a beat may be ahead of joins
//! that were sent before it. One beat therefore proves nothing; and when the
//! joins come, the owner knows at that moment exactly what the beat said, which
//! clears the doubt however busy the shard is. A difference that is real never
//! passes through that point.

use proto::channel::ChannelKey;
use proto::message::InterestDigest;

/// What the owner knows, beside what the gateway says.
#[derive(Debug, Default)]
pub struct Accord {
    known: InterestDigest,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Agreed,
    /// One beat has said this.
    Doubted(InterestDigest),
    /// The gateway was asked to restate; it has last said this.
    Restating(InterestDigest),
}

/// What follows from an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Nothing.
    Nothing,
    /// The gateway is to restate its interest.
    Restate,
    /// A restatement has ended a difference.
    Healed,
}

impl Accord {
    /// The gateway follows a channel, as the owner knows.
    pub fn insert(&mut self, key: &ChannelKey) -> Verdict {
        self.known.insert(key);
        self.compare()
    }

    /// It follows it no longer.
    pub fn remove(&mut self, key: &ChannelKey) -> Verdict {
        self.known.remove(key);
        self.compare()
    }

    /// The gateway has said what it follows.
    pub fn beat(&mut self, said: InterestDigest) -> Verdict {
        let (stage, verdict) = match self.stage {
            _ if said == self.known => (self.stage.saying(said), Verdict::Nothing),
            Stage::Agreed => (Stage::Doubted(said), Verdict::Nothing),
            Stage::Doubted(_) | Stage::Restating(_) => (Stage::Restating(said), Verdict::Restate),
        };
        self.stage = stage;
        match self.compare() {
            Verdict::Nothing => verdict,
            healed => healed,
        }
    }

    /// Ends whatever doubt there is, if the owner knows what the gateway said.
    fn compare(&mut self) -> Verdict {
        match self.stage {
            Stage::Doubted(said) if said == self.known => {
                self.stage = Stage::Agreed;
                Verdict::Nothing
            }
            Stage::Restating(said) if said == self.known => {
                self.stage = Stage::Agreed;
                Verdict::Healed
            }
            _ => Verdict::Nothing,
        }
    }
}

impl Stage {
    fn saying(self, said: InterestDigest) -> Self {
        match self {
            Self::Agreed => Self::Agreed,
            Self::Doubted(_) => Self::Doubted(said),
            Self::Restating(_) => Self::Restating(said),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(channel: &str) -> ChannelKey {
        ChannelKey {
            app: "app".parse().unwrap(),
            channel: channel.parse().unwrap(),
        }
    }

    fn digest(channels: &[&str]) -> InterestDigest {
        let mut digest = InterestDigest::default();
        for channel in channels {
            digest.insert(&key(channel));
        }
        digest
    }

    #[test]
    fn a_difference_in_two_successive_beats_is_asked_about_until_it_ends() {
        let mut accord = Accord::default();
        assert_eq!(accord.insert(&key("a")), Verdict::Nothing);
        assert_eq!(accord.beat(digest(&["a"])), Verdict::Nothing);
        assert_eq!(accord.beat(digest(&["a", "b"])), Verdict::Nothing);
        assert_eq!(accord.beat(digest(&["a", "b"])), Verdict::Restate);
        assert_eq!(
            accord.beat(digest(&["a", "b"])),
            Verdict::Restate,
            "it may have been lost"
        );
        assert_eq!(accord.insert(&key("b")), Verdict::Healed);
        assert_eq!(accord.beat(digest(&["a", "b"])), Verdict::Nothing);
    }

    #[test]
    fn a_difference_that_ends_by_itself_is_not_asked_about() {
        let mut accord = Accord::default();
        assert_eq!(accord.beat(digest(&["a"])), Verdict::Nothing);
        assert_eq!(accord.beat(digest(&[])), Verdict::Nothing);
        assert_eq!(
            accord.beat(digest(&["a"])),
            Verdict::Nothing,
            "not successive"
        );
    }

    /// Each beat comes before the joins that were sent before it: no alarm,
    /// however often.
    #[test]
    fn beats_that_overtake_joins_are_no_difference() {
        let mut accord = Accord::default();
        let mut said = InterestDigest::default();
        for n in 0..10 {
            let (one, two) = (key(&format!("a{n}")), key(&format!("b{n}")));
            said.insert(&one);
            assert_eq!(accord.beat(said), Verdict::Nothing, "{n}");
            assert_eq!(accord.insert(&one), Verdict::Nothing);
            // By the next beat, more has changed.
            said.insert(&two);
            assert_eq!(accord.insert(&two), Verdict::Nothing);
        }
    }

    #[test]
    fn changes_do_not_hide_a_difference() {
        let mut accord = Accord::default();
        let mut said = digest(&["lost"]);
        for n in 0..2 {
            let other = key(&format!("c{n}"));
            said.insert(&other);
            assert_eq!(accord.insert(&other), Verdict::Nothing);
            let expected = [Verdict::Nothing, Verdict::Restate][n];
            assert_eq!(accord.beat(said), expected);
        }
    }

    #[test]
    fn a_beat_can_tell_that_a_restatement_has_healed() {
        let mut accord = Accord::default();
        for expected in [Verdict::Nothing, Verdict::Restate] {
            assert_eq!(accord.beat(digest(&["a"])), expected);
        }
        // The gateway has left the channel meanwhile.
        assert_eq!(accord.beat(digest(&[])), Verdict::Healed);
    }
}
