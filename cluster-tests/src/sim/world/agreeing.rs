//! Who leads, what is decided, and when nodes hear of it. Drives the model of
//! [`agreement`](super::super::agreement).

use std::collections::BTreeSet;
use std::sync::Arc;

use node::core::checkpoint::{Claims, claims};
use node::core::cluster::{Assignment, Cluster, Command, How, Outcome, RaftId, Registration};
use node::core::detection::{Leader, Out};
use node::core::formation::{Succession, succession};
use node::core::gossip::{News, Rumour};
use node::core::placement;
use proto::id::{Incarnation, NodeRef};
use proto::shard::ShardId;

use super::{Event, FAULTS_END, NODE_TICKERS, Program, Proposal, World};
use crate::sim::mistakes::Mistake;
use crate::sim::node as nodes;
use crate::sim::node::Node;
use crate::sim::trace::Fact;

impl World {
    /// Whether a node has a majority: it is there, and hears enough others.
    pub(super) fn has_majority(&self, at: usize) -> bool {
        let lives = |at: usize| {
            let slot = &self.slots[at];
            !matches!(slot.program, Program::Down) && slot.pause.is_none()
        };
        let heard = |other: &usize| lives(*other) && self.network.connected(at as u8, *other as u8);
        lives(at) && (0..self.nodes()).filter(heard).count() > self.nodes() / 2
    }

    /// Whether a node hears whoever leads, who alone tells what is decided.
    fn hears_leader(&self, at: usize) -> bool {
        let heard = |leader| usize::from(leader) == at || self.network.connected(at as u8, leader);
        self.has_majority(at) && self.agreement.leader.is_some_and(heard)
    }

    /// Whether a leader does not hear a majority of the others' beats: then it lets
    /// another lead.
    fn is_deaf(&self, at: usize) -> bool {
        let slot = &self.slots[at];
        let Program::Node(node) = &slot.program else {
            return false;
        };
        let cluster = &self.agreement.state(slot.applied).cluster;
        let (now, voters) = (self.timestamp(at), self.voters(at));
        !node
            .beats
            .hears_majority(now, cluster, slot.raft_id, &voters)
    }

    /// All nodes vote.
    fn voters(&self, at: usize) -> BTreeSet<RaftId> {
        if self.options.mistake == Some(Mistake::DeafLeaderJudges) {
            // A leader that takes itself for all of them.
            return [self.slots[at].raft_id].into();
        }
        let nodes = &self.slots[..self.nodes()];
        nodes.iter().map(|slot| slot.raft_id).collect()
    }

    /// Who does not serve, to a node that leads, or believes to.
    fn out(&self, at: usize, node: &Node, cluster: &Cluster) -> Out {
        let now = self.timestamp(at);
        let leader = Leader {
            me: self.slots[at].raft_id,
            since: node.table.since().unwrap_or(now),
            voters: &self.voters(at),
        };
        let mut out = node.beats.out(now, cluster, leader);
        match self.options.mistake {
            Some(Mistake::UnreachableForsaken) => out.dead.append(&mut out.unreachable),
            Some(Mistake::OneJudges) => {
                let silent = |life: &NodeRef| node.beats.is_dead(now, cluster, life);
                out.dead.extend(out.unreachable.extract_if(.., silent));
            }
            _ => {}
        }
        out
    }

    pub(super) fn elect(&mut self) {
        let at = self.soon(80_000, 250_000);
        self.schedule(at, Event::Election);
        if let Some(leader) = self.agreement.leader {
            let at = usize::from(leader);
            if self.has_majority(at) && !self.agreement.suspended && !self.is_deaf(at) {
                return;
            }
            self.agreement.leader = None;
            let at = self.soon(0, 3_000_000);
            self.schedule(at, Event::StopBelieving(leader));
        }
        if self.agreement.suspended {
            return;
        }
        let able: Vec<usize> = (0..self.nodes())
            .filter(|at| self.has_majority(*at))
            .collect();
        if !able.is_empty() {
            let leader = *self.random.pick(&able);
            self.agreement.leader = Some(leader as u8);
            self.agreement.term += 1;
            self.agreement.believes[leader] = true;
            self.elected(leader);
        }
    }

    pub(super) fn stop_believing(&mut self, node: u8) {
        if self.slots[usize::from(node)].pause.is_some() {
            let later = self.soon(100_000, 500_000);
            self.schedule(later, Event::StopBelieving(node));
            return;
        }
        let agreement = &mut self.agreement;
        let keeps = agreement.leader == Some(node) || agreement.stubborn[usize::from(node)];
        agreement.believes[usize::from(node)] = keeps;
        if !keeps && let Program::Node(node) = &mut self.slots[usize::from(node)].program {
            node.table.deposed();
        }
    }

    /// What a leader does, and whoever believes to be one.
    pub(super) fn lead(&mut self, at: usize) {
        let slot = &self.slots[at];
        let busy = self.agreement.proposing[at];
        if !self.agreement.believes[at] || busy || matches!(slot.program, Program::Down) {
            return;
        }
        let cluster = &Arc::clone(&self.agreement.state(slot.applied).cluster);
        let mut withheld = BTreeSet::new();
        let commands: Vec<Command> = match cluster.founding() {
            None => vec![Command::Found(self.founding.clone())],
            Some(_) => {
                let plan = self.plan(at, cluster);
                self.judge_plan(at, cluster, &plan);
                withheld = plan.withhold.clone();
                let mut entries: Vec<_> = plan.entries().collect();
                entries.extend(self.moves(at, cluster));
                let entries = entries.into_iter().map(Command::Assign);
                entries.chain(self.bury(at, cluster)).collect()
            }
        };
        if commands.is_empty() {
            return;
        }
        if let Program::Node(node) = &mut self.slots[at].program
            && self.options.mistake != Some(Mistake::GrantedMeanwhile)
        {
            node.table.stop_granting(&withheld);
        }
        let (at_least, at_most) = match self.wake_given_up(&withheld) {
            true => (100_000, 300_000),
            false => (500, *self.random.pick(&[5_000, 20_000, 300_000])),
        };
        let soon = self.soon(at_least, at_most);
        self.agreement.proposing[at] = true;
        let life = self.slots[at].life;
        let proposal = Proposal {
            by: at,
            life,
            commands,
            withheld,
            plan: Some(self.agreement.term),
        };
        self.schedule(soon, Event::Commit(Box::new(proposal)));
    }

    fn plan(&self, at: usize, cluster: &Cluster) -> placement::Plan {
        let now = self.timestamp(at);
        let Program::Node(node) = &self.slots[at].program else {
            return placement::Plan::default();
        };
        let mistake = self.options.mistake;
        let lapsed = |owner: &NodeRef, told| {
            let is_not_asked = match mistake {
                Some(Mistake::LapseNotWaited) => true,
                // It is of earlier owners that some may have been told.
                Some(Mistake::EarlierNotWaited) => told != u64::MAX,
                _ => false,
            };
            is_not_asked || node.table.lapsed_unless_told(now, owner, told)
        };
        let seen = placement::Seen {
            out: self.out(at, node, cluster),
            lapsed: &lapsed,
        };
        placement::plan(cluster, &seen)
    }

    /// Shards that have got where they should be.
    fn moves(&self, at: usize, cluster: &Cluster) -> Option<Vec<Assignment>> {
        let Program::Node(node) = &self.slots[at].program else {
            return None;
        };
        let targets = placement::targets(cluster, &BTreeSet::new());
        let moves = placement::moves(cluster, &targets, &self.out(at, node, cluster));
        (!moves.is_empty()).then_some(moves)
    }

    /// Whether a life of a node is there, and beats.
    fn is_awake(&self, node: &NodeRef) -> bool {
        self.place_of(node).is_some_and(|at| {
            let slot = &self.slots[at];
            slot.pause.is_none() && !self.network.muffled[at]
        })
    }

    /// Writes down whom a plan forsakes.
    fn judge_plan(&mut self, at: usize, cluster: &Cluster, plan: &placement::Plan) {
        let now = self.timestamp(at);
        let Program::Node(node) = &self.slots[at].program else {
            return;
        };
        let leader = Leader {
            me: self.slots[at].raft_id,
            since: node.table.since().unwrap_or(now),
            voters: &self.voters(at),
        };
        for assignment in &plan.afresh {
            let row = cluster.rows().get(usize::from(assignment.shard.0));
            let Some(Some(row)) = row else {
                continue;
            };
            // Who is there, and is only not heard because the leader hears nobody, is
            // no less there; and who is heard by another one.
            let is_seen = |holder: &&NodeRef| {
                let is_deaf = self.network.deaf[at] && self.is_awake(holder);
                is_deaf
                    || !node.beats.is_dead(now, cluster, holder)
                    || node.beats.is_heard_by_another(now, cluster, leader, holder)
            };
            let passed_over = row.in_sync().chain([&row.owner]).find(is_seen);
            if let Some(standby) = passed_over.and_then(|standby| self.place_of(standby)) {
                self.trace.add(Fact::Forsaken {
                    shard: assignment.shard.0,
                    standby: standby as u8,
                });
            }
        }
    }

    pub(super) fn commit(&mut self, proposal: Proposal) {
        let Proposal {
            by,
            life,
            commands,
            withheld,
            plan,
        } = proposal;
        if self.slots[by].life != life {
            return;
        }
        if plan.is_some() {
            self.agreement.proposing[by] = false;
        }
        let agreement = &self.agreement;
        let in_term = agreement.leader == Some(by as u8) && plan == Some(agreement.term);
        let may = self.has_majority(by) && !agreement.suspended;
        if may && (withheld.is_empty() || in_term) {
            for command in commands {
                self.decide(command);
            }
            if !withheld.is_empty() {
                self.catch_up(by);
            }
            if plan.is_none() {
                self.strike_proposer(by);
            }
        }
        if let Program::Node(node) = &mut self.slots[by].program {
            node.table.grant_again(&withheld);
        }
    }

    /// Nodes to which shards move may die just then.
    fn kill_next_owners(&mut self, command: &Command) {
        let Command::Assign(assignments) = command else {
            return;
        };
        let moves = |a: &&Assignment| matches!(a.how, How::Promote { keep: Some(_) });
        let owners: BTreeSet<&NodeRef> =
            assignments.iter().filter(moves).map(|a| &a.owner).collect();
        for owner in owners {
            if let Some(at) = self.place_of(owner)
                && self.now < FAULTS_END
                && self.random.chance(self.moves_kill)
            {
                let soon = self.soon(0, 80_000);
                self.schedule(soon, Event::Die(at, self.slots[at].life));
            }
        }
    }

    /// Writes down what begins anew, if it is decided.
    fn judge_assignments(&mut self, command: &Command) {
        let Command::Assign(assignments) = command else {
            return;
        };
        let fence = self.agreement.length() as u64 + 1;
        for assignment in assignments {
            if assignment.how == How::Afresh {
                self.trace.add(Fact::Afresh {
                    shard: assignment.shard.0,
                    fence,
                });
            }
        }
    }

    pub(super) fn decide(&mut self, command: Command) -> Outcome {
        self.judge_assignments(&command);
        self.judge_burial(&command);
        self.kill_next_owners(&command);
        self.strike_promoted(&command);
        let outcome = self.agreement.decide(command);
        for node in 0..self.nodes() {
            let soon = self.soon(500, 30_000);
            self.schedule(soon, Event::CatchUp(node));
        }
        outcome
    }

    /// A node that has started says so to the leader, until it is registered.
    pub(super) fn register(&mut self, at: usize, life: u32) {
        let slot = &self.slots[at];
        let Program::Starting { start, registered } = &slot.program else {
            return;
        };
        if slot.life != life || registered.is_some() {
            return;
        }
        let (start, paused) = (*start, slot.pause.is_some());
        let again = self.soon(40_000, 90_000);
        self.schedule(again, Event::Register(at, life));
        let leader = self.agreement.leader.map(usize::from);
        let Some(leader) = leader.filter(|leader| self.has_majority(*leader)) else {
            return;
        };
        if paused || self.agreement.suspended {
            return;
        }
        if !self.network.connected(leader as u8, at as u8) {
            return;
        }
        let cluster = Arc::clone(&self.agreement.state(self.slots[leader].applied).cluster);
        if cluster.founding().is_none() {
            return;
        }
        let raft_id = self.slots[at].raft_id;
        let name = self.slots[at].process.to_string();
        let name: proto::id::NodeId = name.parse().expect("a valid id");
        let known = cluster.members().get(&name);
        if let Some(known) = known.filter(|known| known.registration.raft_id != raft_id) {
            let known = known.registration.raft_id;
            let is_seen = match &self.slots[leader].program {
                Program::Node(leader) => leader.rumours.get(&known).is_some_and(Rumour::is_seen),
                _ => false,
            };
            // At the address of the one that was there, this one answers.
            if succession(known, Some(raft_id), is_seen) == Succession::Takes {
                self.decide(Command::Forget(known));
            }
            return;
        }
        let kept = self.claims(at, &cluster);
        let outcome = self.decide(Command::Register(Registration {
            raft_id,
            name,
            start,
            address: String::new(),
            zone: String::new(),
            witness: false,
            kept,
        }));
        // The answer may be lost; then it is registered, and asks again.
        let lost = self.random.chance(100);
        if let Outcome::Registered(incarnation) = outcome
            && !lost
            && let Program::Starting { registered, .. } = &mut self.slots[at].program
        {
            *registered = Some(incarnation.0);
        }
    }

    /// What a node may claim that it has kept.
    fn claims(&self, at: usize, cluster: &Cluster) -> Claims {
        let slot = &self.slots[at];
        let Some((_, kept)) = &slot.checkpoint else {
            return Claims::new();
        };
        if self.options.mistake != Some(Mistake::StaleCheckpoint) {
            return claims(kept);
        }
        let fence =
            |shard: ShardId| Some(cluster.rows().get(usize::from(shard.0))?.as_ref()?.fence);
        let kept = kept.iter();
        kept.filter_map(|kept| Some((fence(kept.shard)?, vec![kept.shard])))
            .collect()
    }

    /// A node applies what is agreed, if it can hear of it.
    pub(super) fn catch_up(&mut self, at: usize) {
        let slot = &self.slots[at];
        if at >= self.nodes() || slot.lags || self.now < slot.deaf_until || !self.hears_leader(at) {
            return;
        }
        let now = self.timestamp(at);
        let last = self.agreement.length();
        let slot = &mut self.slots[at];
        slot.applied = last;
        let state = self.agreement.state(last);
        let leads = self.agreement.believes[at];
        match &mut slot.program {
            Program::Node(node) => {
                if state.cluster.check_life(slot.raft_id, &node.me).is_err() {
                    self.end_by_itself(at);
                    return;
                }
                let (trace, out) = (&mut self.trace, &mut self.node_out);
                node.follow(now, state, last, leads, trace, out);
                self.perform_node(at);
            }
            Program::Starting {
                registered: Some(registered),
                ..
            } if *registered <= last as u64 => {
                let incarnation = *registered;
                self.begin_node(at, incarnation);
            }
            Program::Starting { .. } | Program::Down | Program::Gateway(_) => {}
        }
    }

    pub(super) fn begin_node(&mut self, at: usize, incarnation: u64) {
        let seed = self.random.draw();
        let now = self.timestamp(at);
        let slot = &mut self.slots[at];
        let checkpoint = match self.options.mistake {
            Some(Mistake::StaleCheckpoint) => slot.checkpoint.clone(),
            _ => slot.checkpoint.take(),
        };
        let state = self.agreement.state(slot.applied);
        let news = News {
            raft_id: slot.raft_id,
            incarnation: Incarnation(incarnation),
            edition: 0,
            name: slot.process.to_string().parse().expect("a valid id"),
            address: String::new(),
            zone: String::new(),
            version: String::new(),
            shards: 0,
        };
        self.trace.add(Fact::Started {
            process: slot.process,
            incarnation,
        });
        let node = Node::new(
            nodes::Start {
                number: at as u8,
                news,
                namespaces: Arc::clone(&self.namespaces),
                mistake: self.options.mistake,
                seed,
                now,
                checkpoint,
            },
            state,
            &mut self.trace,
        );
        slot.program = Program::Node(Box::new(node));
        let life = slot.life;
        // It may have been leading since before it was registered.
        if self.agreement.believes[at] {
            self.elected(at);
        }
        for ticker in NODE_TICKERS {
            self.schedule(self.now, Event::Tick(at, life, ticker));
        }
    }
}
