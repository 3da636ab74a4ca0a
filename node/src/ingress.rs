//! Shell: takes what comes from the bus to the workers, and answers what is
//! asked of the node as a whole.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proto::bus::Subscription;
use proto::codec;
use proto::id::GatewayRef;
use proto::inspection::{Answer, Question};
use proto::message::{
    GatewayBeat, GatewayCounts, Message, NodeBeat, Reply, Request, Requests, ShardCounts,
};
use proto::namespace::Namespaces;
use proto::shard::{ShardId, ShardMap};
use proto::time::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use crate::agreement::Known;
use crate::core::gateways::{self, Gateways, Silence};
use crate::core::neighbours::{self, Neighbours};
use crate::core::routing::{Route, route};
use crate::core::shard::{Around, Effect};
use crate::core::shards::{Input, Vacant};
use crate::core::{inspection, outbound};
use crate::metrics::Metrics;
use crate::{Config, Error, View, inspect, worker};

/// How often what depends on time is looked at.
const TICK: Duration = Duration::from_millis(500);
/// How often the leader is told who is silent.
const REPORT: Duration = Duration::from_millis(250);

/// All that a node hears by.
pub(crate) struct Ears {
    pub(crate) requests: Subscription,
    pub(crate) gateway_beats: Subscription,
    pub(crate) node_beats: Subscription,
    pub(crate) questions: mpsc::Receiver<inspect::Mail>,
}

/// All whom it tells.
pub(crate) struct Ingress {
    config: Arc<Config>,
    namespaces: Arc<Namespaces>,
    view: View,
    gateways: Gateways,
    /// Which of them the workers know of.
    around: Arc<Around>,
    neighbours: Neighbours,
    workers: Vec<mpsc::Sender<worker::Mail>>,
    out: mpsc::Sender<Vec<Effect>>,
    /// `None`: the node is alone, and nobody judges.
    silences: Option<watch::Sender<Option<Silence>>>,
    metrics: Arc<Metrics>,
}

/// What comes next.
enum Next {
    Tick,
    Report,
    Agreed,
    /// `None`: the bus is closed.
    Payload(Option<Bytes>),
    Question(inspect::Mail),
}

/// Waits for news of what is agreed; for ever, where nothing is.
async fn agreed(known: &mut Option<watch::Receiver<Known>>) {
    match known {
        Some(known) => View::changed(known).await,
        None => std::future::pending().await,
    }
}

/// Why it ends.
enum End {
    /// The node is ending: whoever this wanted to talk to has ended.
    Stopped,
    Failed(Error),
}

impl Ingress {
    pub(crate) fn new(
        config: Arc<Config>,
        namespaces: Arc<Namespaces>,
        view: View,
        workers: Vec<mpsc::Sender<worker::Mail>>,
        out: mpsc::Sender<Vec<Effect>>,
        silences: Option<watch::Sender<Option<Silence>>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            neighbours: Neighbours::new(config.node.clone(), namespaces.digest()),
            gateways: Gateways::default(),
            around: Arc::default(),
            config,
            namespaces,
            view,
            workers,
            out,
            silences,
            metrics,
        }
    }

    /// Runs until shutdown. A full worker makes this wait; the bus's own queue
    /// then fills and drops, and gateways send again what got no answer.
    pub(crate) async fn run(
        mut self,
        mut ears: Ears,
        mut shutdown: watch::Receiver<bool>,
    ) -> Result<(), Error> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut report = tokio::time::interval(REPORT);
        report.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let agreement = self.view.agreement.as_ref();
        let mut known = agreement.map(|agreement| agreement.known.clone());
        loop {
            let next = tokio::select! {
                _ = shutdown.wait_for(|stop| *stop) => return Ok(()),
                _ = tick.tick() => Next::Tick,
                _ = report.tick() => Next::Report,
                () = agreed(&mut known) => Next::Agreed,
                payload = ears.requests.next() => Next::Payload(payload),
                payload = ears.gateway_beats.next() => Next::Payload(payload),
                payload = ears.node_beats.next() => Next::Payload(payload),
                Some(mail) = ears.questions.recv() => Next::Question(mail),
            };
            let heard = match next {
                Next::Tick => self.tick().await,
                Next::Report => {
                    self.report();
                    Ok(())
                }
                Next::Agreed => {
                    self.follow();
                    Ok(())
                }
                Next::Payload(payload) => self.hear(payload).await,
                Next::Question(mail) => self.question(mail).await,
            };
            match heard {
                Ok(()) => {}
                Err(End::Stopped) => return Ok(()),
                Err(End::Failed(error)) => return Err(error),
            }
        }
    }

    async fn hear(&mut self, payload: Option<Bytes>) -> Result<(), End> {
        let payload = payload.ok_or(End::Stopped)?;
        match codec::decode(&payload) {
            Ok(Message::Requests(requests)) => {
                self.metrics.bus.requests.inc();
                self.requests(requests).await
            }
            Ok(Message::GatewayBeat(beat)) => {
                self.metrics.bus.beats_heard.inc();
                self.gateway_beat(beat).await
            }
            Ok(Message::GatewayCounts(counts)) => {
                self.metrics.bus.beats_heard.inc();
                self.gateway_counts(counts).await
            }
            Ok(Message::NodeBeat(beat)) => {
                self.metrics.bus.beats_heard.inc();
                self.node_beat(&beat)
            }
            Ok(Message::Replies(_) | Message::Batch(_) | Message::Repair(_) | Message::Map(_)) => {
                self.metrics.malformed.inc();
                Ok(())
            }
            Err(error) => {
                self.metrics.malformed.inc();
                tracing::warn!(node = %self.config.node.id, %error, "dropped a message from the bus");
                Ok(())
            }
        }
    }

    async fn requests(&mut self, requests: Requests) -> Result<(), End> {
        let Requests {
            from,
            map_version,
            requests,
        } = requests;
        let now = Timestamp::now();
        let heard = self.gateways.asked(now, &from, map_version);
        if !self.met(now, &from, heard).await? {
            return Ok(());
        }
        let map = self.map();
        let mut mail: Vec<Vec<Input>> = self.workers.iter().map(|_| Vec::new()).collect();
        let mut answers = Vec::new();
        for request in requests {
            match route(&map.sharding, &request) {
                Route::Shard(shard) => mail[self.worker(shard)].push(Input::Request {
                    from: from.clone(),
                    shard,
                    request,
                }),
                Route::Node => {
                    if let Request::Greet(greet) = &request {
                        let (vacant, answer) = Vacant::greeted(&from, map_version, greet);
                        for mail in &mut mail {
                            mail.push(Input::Vacant(Arc::clone(&vacant)));
                        }
                        answers.push(answer);
                    }
                    answers.extend(self.answer(now, &map, &from, request));
                }
            }
        }
        self.tell(mail).await?;
        self.send(answers).await
    }

    async fn gateway_beat(&mut self, beat: GatewayBeat) -> Result<(), End> {
        let map = self.map();
        if map.rows.is_empty() {
            // We do not know our cluster yet, so nobody can be told from us.
            return Ok(());
        }
        let now = Timestamp::now();
        let heard = self.gateways.beat(now, map.cluster, &beat);
        if let gateways::Heard::Stranger { log } = heard {
            self.metrics.stranger_gateways.inc();
            if log {
                let (gateway, theirs, ours) = (&beat.from.id, beat.cluster, map.cluster);
                tracing::error!(%gateway, %theirs, %ours, cluster = %self.config.cluster, "a gateway of another cluster uses this cluster's name on the bus; ignoring it");
            }
        }
        if !self.met(now, &beat.from, heard).await? {
            return Ok(());
        }
        let mut mail: Vec<Vec<Input>> = self.workers.iter().map(|_| Vec::new()).collect();
        for interest in beat.interest {
            let from = beat.from.clone();
            mail[self.worker(interest.shard)].push(Input::Beat { from, interest });
        }
        self.tell(mail).await
    }

    async fn gateway_counts(&self, counts: GatewayCounts) -> Result<(), End> {
        // Of strangers the beats complain, and by its beats a gateway is known.
        let is_ours = counts.cluster == self.map().cluster;
        if !is_ours || !self.gateways.knows(&counts.from) {
            return Ok(());
        }
        let mut mail: Vec<Vec<ShardCounts>> = self.workers.iter().map(|_| Vec::new()).collect();
        for count in counts.counts {
            mail[self.worker(count.shard)].push(count);
        }
        let from = counts.from;
        for (worker, counts) in self.workers.iter().zip(mail) {
            if !counts.is_empty() {
                let mail = worker::Mail::Counts(from.clone(), counts);
                worker.send(mail).await.map_err(|_| End::Stopped)?;
            }
        }
        Ok(())
    }

    /// Acts on what the registry says of a gateway, and says whether the
    /// gateway is to be listened to.
    async fn met(
        &mut self,
        now: Timestamp,
        from: &GatewayRef,
        heard: gateways::Heard,
    ) -> Result<bool, End> {
        match heard {
            gateways::Heard::Known => Ok(true),
            gateways::Heard::New => {
                self.tell_all(|| Input::Met(from.clone())).await?;
                self.forget(now).await?;
                Ok(true)
            }
            gateways::Heard::Gone { newer } => {
                let reply = Reply::Gone { newer };
                let to = from.clone();
                self.send(vec![Effect::Reply { to, reply }]).await?;
                Ok(false)
            }
            gateways::Heard::DeclaredGone { through } => {
                let reply = Reply::DeclaredGone { through };
                let to = from.clone();
                self.send(vec![Effect::Reply { to, reply }]).await?;
                Ok(false)
            }
            gateways::Heard::Stranger { .. } => Ok(false),
        }
    }

    /// Says who is silent.
    fn report(&mut self) {
        let silence = self.gateways.report(Timestamp::now());
        if let Some(silences) = self.silences.as_ref().filter(|_| silence.is_some()) {
            silences.send_replace(silence);
        }
    }

    /// Goes by what is agreed of who is gone. The workers do so themselves.
    fn follow(&mut self) {
        let Some(agreement) = &self.view.agreement else {
            return;
        };
        let gone = Arc::clone(agreement.known.borrow().cluster.gone());
        for gateway in self.gateways.lose(&gone) {
            self.metrics.gateways_gone.inc();
            tracing::info!(gateway = %gateway.id, incarnation = gateway.incarnation.0, "this gateway is gone, as is agreed; forgetting what it wanted");
        }
    }

    fn node_beat(&mut self, beat: &NodeBeat) -> Result<(), End> {
        let map = self.map();
        if map.rows.is_empty() {
            return Ok(());
        }
        let now = Timestamp::now();
        let node = &beat.from.id;
        match self.neighbours.beat(now, map.cluster, beat) {
            neighbours::Heard::Fine => {}
            neighbours::Heard::Echo => self.gateways.echo(now),
            neighbours::Heard::NamespacesDiffer => {
                tracing::warn!(%node, "this node and that one have DIFFERENT NAMESPACES: what a channel keeps depends on who owns it; give all nodes the same configuration");
            }
            neighbours::Heard::Stranger { log } => {
                self.metrics.stranger_nodes.inc();
                if log {
                    let (theirs, ours) = (beat.cluster, map.cluster);
                    tracing::error!(%node, %theirs, %ours, cluster = %self.config.cluster, "a node of another cluster uses this cluster's name on the bus; ignoring it");
                }
            }
            neighbours::Heard::Superseded { newer } => {
                let node = self.config.node.id.clone();
                return Err(End::Failed(Error::Superseded { node, newer }));
            }
        }
        Ok(())
    }

    async fn tick(&mut self) -> Result<(), End> {
        let now = Timestamp::now();
        let metrics = &self.metrics;
        metrics.gateways.set(self.gateways.present(now) as i64);
        let differing = self.neighbours.differing(now);
        metrics.namespaces_differ.set(differing as i64);
        self.forget(now).await?;
        let around = self.gateways.around(now);
        if around != *self.around {
            self.around = Arc::new(around);
            let around = Arc::clone(&self.around);
            self.tell_all(|| Input::Around(Arc::clone(&around))).await?;
        }
        Ok(())
    }

    async fn forget(&mut self, now: Timestamp) -> Result<(), End> {
        while let Some(gateway) = self.gateways.forget(now) {
            tracing::info!(gateway = %gateway.id, "a gateway has been silent for long; forgetting what it wanted");
            self.tell_all(|| Input::Forget(gateway.clone())).await?;
        }
        Ok(())
    }

    /// Answers what is not of one shard.
    fn answer(
        &self,
        now: Timestamp,
        map: &ShardMap,
        from: &GatewayRef,
        request: Request,
    ) -> Option<Effect> {
        let to = from.clone();
        let reply = match request {
            Request::Map { since } => {
                let update = outbound::update(map, since)?;
                let namespaces = (*self.namespaces).clone();
                Reply::Map { update, namespaces }
            }
            Request::Inspect { id, question } => {
                let answer = self.look(now, map, &question);
                Reply::Inspected { id, answer }
            }
            Request::Repair(repair) => return Some(Effect::Repair { to, repair }),
            _ => return None,
        };
        Some(Effect::Reply { to, reply })
    }

    fn look(&self, now: Timestamp, map: &ShardMap, question: &Question) -> Answer {
        match question {
            Question::Nodes => inspection::nodes(&self.view.members.borrow()),
            Question::Gateways => Answer::Gateways(self.gateways.describe(now)),
            Question::Shards => Answer::Shards(map.since(0)),
            Question::Standbys => match &self.view.agreement {
                None => Answer::Standbys(Vec::new()),
                Some(agreement) => {
                    let known = agreement.known.borrow();
                    inspection::standbys(&known.cluster, &known.targets)
                }
            },
            Question::Events => inspection::events(&self.view.events.borrow()),
            Question::Shard { .. } if map.sharding.count > 0 => {
                Answer::Unavailable(format!("there are shards 0 to {}", map.sharding.count - 1))
            }
            // Its shard would know, if it could be told which one that is.
            Question::Channel { .. } | Question::Shard { .. } => {
                Answer::Unavailable("this node has no shard map yet".into())
            }
        }
    }

    async fn question(&mut self, (question, answer): inspect::Mail) -> Result<(), End> {
        let map = self.map();
        match question {
            Question::Channel { key } if map.sharding.count > 0 => {
                let worker = &self.workers[self.worker(map.sharding.shard_of(&key))];
                let mail = worker::Mail::Describe(key, answer);
                worker.send(mail).await.map_err(|_| End::Stopped)
            }
            Question::Shard { shard } if shard.0 < map.sharding.count => {
                let worker = &self.workers[self.worker(shard)];
                let mail = worker::Mail::DescribeShard(shard, answer);
                worker.send(mail).await.map_err(|_| End::Stopped)
            }
            question => {
                // Whoever asked may have gone.
                let _ = answer.send(self.look(Timestamp::now(), &map, &question));
                Ok(())
            }
        }
    }

    fn map(&self) -> Arc<ShardMap> {
        Arc::clone(&self.view.map.borrow())
    }

    fn worker(&self, shard: ShardId) -> usize {
        usize::from(shard.0) % self.workers.len()
    }

    /// Order is kept per worker, so per shard.
    async fn tell(&self, mail: Vec<Vec<Input>>) -> Result<(), End> {
        for (worker, inputs) in self.workers.iter().zip(mail) {
            if !inputs.is_empty() {
                let mail = worker::Mail::Inputs(inputs);
                worker.send(mail).await.map_err(|_| End::Stopped)?;
            }
        }
        Ok(())
    }

    async fn tell_all(&self, input: impl Fn() -> Input) -> Result<(), End> {
        self.tell(self.workers.iter().map(|_| vec![input()]).collect())
            .await
    }

    async fn send(&self, effects: Vec<Effect>) -> Result<(), End> {
        if effects.is_empty() {
            return Ok(());
        }
        self.out.send(effects).await.map_err(|_| End::Stopped)
    }
}
