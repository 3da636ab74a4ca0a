//! What a node hears from the bus, and whom of that it listens to.

use std::sync::Arc;

use node::core::gateways::{self, Silence};
use node::core::neighbours;
use node::core::outbound;
use node::core::routing::{Route, route};
use node::core::shard::Effect;
use node::core::shards::{Input, Vacant};
use proto::id::GatewayRef;
use proto::message::{GatewayBeat, NodeBeat, Reply, Request, Requests};
use proto::time::Timestamp;

use super::{Node, Outgoing, Superseded, WORKERS};
use crate::sim::mistakes::Mistake;
use crate::sim::trace::Trace;

impl Node {
    /// Half a second has passed for the ingress.
    pub fn tick_ingress(&mut self, now: Timestamp, trace: &mut Trace, out: &mut Outgoing) {
        self.neighbours.differing(now);
        self.forget(now);
        let around = self.gateways.around(now);
        if around != *self.around {
            self.around = Arc::new(around);
            let around = Arc::clone(&self.around);
            self.tell_all(|| Input::Around(Arc::clone(&around)));
        }
        self.run(now, trace, out);
    }

    /// Time to say which gateways are silent.
    pub fn tick_report(&mut self, now: Timestamp) -> Option<Silence> {
        if self.mistake.is(Mistake::DeafJudges) {
            self.gateways.echo(now);
        }
        self.gateways.report(now)
    }

    pub(super) fn requests(&mut self, now: Timestamp, requests: Requests) {
        let Requests {
            from,
            map_version,
            requests,
        } = requests;
        let heard = self.gateways.asked(now, &from, map_version);
        if !self.met(now, &from, heard) {
            return;
        }
        let mut mail: [Vec<Input>; WORKERS] = Default::default();
        let mut answers = Vec::new();
        for mut request in requests {
            match route(&self.map.sharding, &request) {
                Route::Shard(shard) => {
                    let mut from = from.clone();
                    self.mistake.request(&mut from, &mut request);
                    mail[usize::from(shard.0) % WORKERS].push(Input::Request {
                        from,
                        shard,
                        request,
                    });
                }
                Route::Node => {
                    if let Request::Greet(greet) = &request {
                        let (vacant, answer) = Vacant::greeted(&from, map_version, greet);
                        for mail in &mut mail {
                            mail.push(Input::Vacant(Arc::clone(&vacant)));
                        }
                        answers.push(answer);
                    }
                    answers.extend(self.answer(&from, request));
                }
            }
        }
        self.tell(mail);
        self.effects.push_back(answers);
    }

    fn answer(&self, from: &GatewayRef, request: Request) -> Option<Effect> {
        let to = from.clone();
        match request {
            Request::Map { since } => {
                let update = outbound::update(&self.map, since)?;
                let namespaces = (*self.namespaces).clone();
                let reply = Reply::Map { update, namespaces };
                Some(Effect::Reply { to, reply })
            }
            Request::Repair(repair) => Some(Effect::Repair { to, repair }),
            _ => None,
        }
    }

    pub(super) fn gateway_beat(&mut self, now: Timestamp, beat: GatewayBeat) {
        if self.map.rows.is_empty() {
            return;
        }
        let heard = self.gateways.beat(now, self.map.cluster, &beat);
        if !self.met(now, &beat.from, heard) {
            return;
        }
        let mut mail: [Vec<Input>; WORKERS] = Default::default();
        for interest in beat.interest {
            let from = beat.from.clone();
            mail[usize::from(interest.shard.0) % WORKERS].push(Input::Beat { from, interest });
        }
        self.tell(mail);
    }

    pub(super) fn node_beat(&mut self, now: Timestamp, beat: &NodeBeat) -> Result<(), Superseded> {
        if self.map.rows.is_empty() {
            return Ok(());
        }
        match self.neighbours.beat(now, self.map.cluster, beat) {
            neighbours::Heard::Echo => {
                for at in self.mistake.echoes(now) {
                    self.gateways.echo(at);
                }
                self.gateways.echo(now);
            }
            neighbours::Heard::Superseded { .. } => return Err(Superseded),
            neighbours::Heard::Fine
            | neighbours::Heard::NamespacesDiffer
            | neighbours::Heard::Stranger { .. } => {}
        }
        Ok(())
    }

    fn met(&mut self, now: Timestamp, from: &GatewayRef, heard: gateways::Heard) -> bool {
        match heard {
            gateways::Heard::Known => true,
            gateways::Heard::New => {
                self.tell_all(|| Input::Met(from.clone()));
                self.forget(now);
                true
            }
            gateways::Heard::Gone { newer } => {
                let reply = Reply::Gone { newer };
                let to = from.clone();
                self.effects.push_back(vec![Effect::Reply { to, reply }]);
                false
            }
            gateways::Heard::DeclaredGone { through } => {
                let reply = Reply::DeclaredGone { through };
                let to = from.clone();
                self.effects.push_back(vec![Effect::Reply { to, reply }]);
                false
            }
            gateways::Heard::Stranger { .. } => false,
        }
    }

    fn forget(&mut self, now: Timestamp) {
        while let Some(gateway) = self.gateways.forget(now) {
            self.tell_all(|| Input::Forget(gateway.clone()));
        }
    }

    fn tell(&mut self, mail: [Vec<Input>; WORKERS]) {
        for (worker, inputs) in self.workers.iter_mut().zip(mail) {
            if !inputs.is_empty() {
                worker.mail.push_back(inputs);
            }
        }
    }

    fn tell_all(&mut self, input: impl Fn() -> Input) {
        for worker in &mut self.workers {
            worker.mail.push_back(vec![input()]);
        }
    }
}
