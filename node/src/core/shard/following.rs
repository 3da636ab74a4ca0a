//! Which gateways follow what, and in which life: joins, leaves, restatements.

use proto::channel::ChannelKey;
use proto::id::{GatewayId, GatewayRef, Incarnation};
use proto::message::{InterestDigest, Join, Joined, Leave, Refusal, Reply, RestateEnd};
use proto::time::Timestamp;

use super::{Effect, Gateway, SILENT_MAX, Shard, Tenure};
use crate::core::accord::Verdict;
use crate::core::gone::Gone;
use crate::core::interest::Change;

impl Shard {
    /// Takes note of a gateway's incarnation. A higher one voids the lower one
    /// at once, a lower one is told so.
    pub(super) fn meet(&mut self, now: Timestamp, from: &GatewayRef) -> Result<(), Incarnation> {
        if !self.gateways.contains_key(&from.id) {
            self.part_with_others(now, from);
        }
        let known = self
            .gateways
            .entry(from.id.clone())
            .or_insert_with(|| Gateway::new(from.clone()));
        if from.incarnation < known.me.incarnation {
            return Err(known.me.incarnation);
        }
        if from.incarnation > known.me.incarnation {
            *known = Gateway::new(from.clone());
            self.part_with_others(now, from);
            self.drop_interest(now, &from.id, |incarnation, _| {
                incarnation < from.incarnation
            });
        }
        Ok(())
    }

    /// A gateway begins a new life. Whoever has never asked for anything here
    /// leaves no trace.
    pub(super) fn met(&mut self, now: Timestamp, gateway: &GatewayRef) {
        if self.gateways.contains_key(&gateway.id) {
            // One that is older than we know is told so when it asks.
            let _ = self.meet(now, gateway);
        }
    }

    /// Lets go of all that is known of one life of a gateway.
    pub(super) fn forget(
        &mut self,
        now: Timestamp,
        gateway: &GatewayRef,
        effects: &mut Vec<Effect>,
    ) {
        let known = self.gateways.get(&gateway.id);
        if known.is_some_and(|known| known.me == *gateway) {
            let known = self.gateways.remove(&gateway.id);
            if let Some(mut table) = known.and_then(|known| known.publishes) {
                table.forget_results();
                if self.silent.len() >= SILENT_MAX {
                    self.silent.pop_front();
                }
                self.silent.push_back((gateway.clone(), table));
            }
            self.drop_interest(now, &gateway.id, |_, _| true);
        }
        self.remove_members(now, |of, _| of == gateway, effects);
    }

    /// Lets go of everything of gateways that are gone. Their publish tables, too:
    /// whoever is gone is not listened to, so nothing of theirs comes again.
    pub(super) fn lose(&mut self, now: Timestamp, gone: &Gone) {
        self.silent.retain(|(gateway, _)| !gone.contains(gateway));
        let lost = self
            .gateways
            .extract_if(|_, known| gone.contains(&known.me));
        let lost: Vec<GatewayId> = lost.map(|(id, _)| id).collect();
        for id in lost {
            self.drop_interest(now, &id, |_, _| true);
        }
        self.part_with_gone(now, gone);
    }

    /// A gateway says what it wants here: it must be what we know.
    pub(super) fn beat(
        &mut self,
        now: Timestamp,
        from: &GatewayRef,
        digest: InterestDigest,
        effects: &mut Vec<Effect>,
    ) {
        // Neither does one that wants nothing here.
        let nothing = digest == InterestDigest::default();
        if nothing && !self.gateways.contains_key(&from.id) {
            return;
        }
        if self.meet(now, from).is_ok() {
            let verdict = self.gateway(from).accord.beat(digest);
            self.conclude(from, verdict, effects);
        }
    }

    fn conclude(&self, gateway: &GatewayRef, verdict: Verdict, effects: &mut Vec<Effect>) {
        let Tenure { shard, fence, .. } = self.tenure;
        match verdict {
            Verdict::Nothing => {}
            Verdict::Healed => effects.push(Effect::Healed),
            Verdict::Restate => effects.push(Effect::Reply {
                to: gateway.clone(),
                reply: Reply::Restate { shard, fence },
            }),
        }
    }

    /// Everything that a gateway wants has been stated under `end.since` or a
    /// higher version, so the rest goes.
    pub(super) fn restated(
        &mut self,
        now: Timestamp,
        from: &GatewayRef,
        end: RestateEnd,
        effects: &mut Vec<Effect>,
    ) {
        if self.check_fence(end.fence).is_err() {
            return;
        }
        let ended = self.drop_interest(now, &from.id, |_, version| version < end.since);
        let gateway = self.gateway(from);
        gateway.restated = gateway.restated.max(end.since);
        for key in ended {
            let verdict = self.gateway(from).accord.remove(&key);
            self.conclude(from, verdict, effects);
        }
    }

    /// Forgets what a gateway said, by incarnation and version. Returns the
    /// channels whose publications it got until now.
    fn drop_interest(
        &mut self,
        now: Timestamp,
        gateway: &GatewayId,
        goes: impl Fn(Incarnation, u64) -> bool,
    ) -> Vec<ChannelKey> {
        let mut ended = Vec::new();
        let mut unwanted = Vec::new();
        for (key, channel) in &mut self.channels {
            if channel.interest.forget(gateway, &goes) == Change::Ended {
                ended.push(key.clone());
            }
            if channel.is_idle() {
                unwanted.push(key.clone());
            }
        }
        self.interest -= ended.len();
        for key in &ended {
            self.uncount(now, key, gateway);
        }
        for key in unwanted {
            self.set_check(now, &key);
        }
        ended
    }

    /// `None`: a newer join or leave of this gateway has come before, and its
    /// answer is the one that counts.
    pub(super) fn join(
        &mut self,
        now: Timestamp,
        from: &GatewayRef,
        join: Join,
        effects: &mut Vec<Effect>,
    ) -> Option<Result<Joined, Refusal>> {
        if let Err(refusal) = self.check_fence(join.fence) {
            return Some(Err(refusal));
        }
        let fence = self.tenure.fence;
        // A join says that somebody is there, so it counts for at least one.
        let count = join.count.max(1);
        match self.set_interest(now, from, &join.key, count, join.version, effects) {
            Ok(Change::Stale) => return None,
            Ok(_) if join.is_counted => {
                self.count_for(now, &join.key, &from.id);
                self.tell_counts(now, effects);
            }
            Ok(_) => {}
            Err(refusal) => return Some(Err(refusal)),
        }
        let channel = self.channels.get(&join.key)?;
        let (position, missed) = channel.since(join.since);
        Some(Ok(Joined {
            fence,
            position,
            missed,
            cached: self.caches.get(now, &join.key),
        }))
    }

    /// A channel without state gets one: a join that is still on its way
    /// carries a lower version, which the tombstone must meet.
    pub(super) fn leave(
        &mut self,
        now: Timestamp,
        from: &GatewayRef,
        leave: &Leave,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        self.check_fence(leave.fence)?;
        let change = self.set_interest(now, from, &leave.key, 0, leave.version, effects)?;
        if change == Change::Ended {
            self.uncount(now, &leave.key, &from.id);
        }
        self.set_check(now, &leave.key);
        Ok(())
    }

    fn set_interest(
        &mut self,
        now: Timestamp,
        from: &GatewayRef,
        key: &ChannelKey,
        count: u32,
        version: u64,
        effects: &mut Vec<Effect>,
    ) -> Result<Change, Refusal> {
        let gateway = self.gateway(from);
        if version < gateway.restated {
            return Ok(Change::Stale);
        }
        // Not `from` itself: its name is a new piece of memory in each message.
        let me = gateway.me.clone();
        let (_, channel) = self.channel(key)?;
        let change = channel.interest.set(now, &me, count, version);
        let verdict = match change {
            Change::Began => {
                self.interest += 1;
                self.gateway(from).accord.insert(key)
            }
            Change::Ended => {
                self.interest -= 1;
                self.gateway(from).accord.remove(key)
            }
            Change::Same | Change::Stale => Verdict::Nothing,
        };
        self.conclude(from, verdict, effects);
        Ok(change)
    }
}
