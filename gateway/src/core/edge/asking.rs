//! Questions of a person who looks inside, passed on to whoever knows.

use std::time::Duration;

use proto::id::NodeId;
use proto::inspection::{Answer, Question};
use proto::message::Request;
use proto::time::Timestamp;

use super::{Edge, Effect};
use crate::core::uplink::Ticket;

/// How long a node has to answer.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// Questions that may be open; more are refused.
const ASKED_MAX: usize = 64;

/// A question on its way.
#[derive(Debug)]
pub(super) struct Asked {
    node: NodeId,
    question: Question,
    deadline: Timestamp,
    /// The first node named another one.
    redirected: bool,
}

impl Edge {
    pub(super) fn ask_node(
        &mut self,
        now: Timestamp,
        ticket: Ticket,
        question: Question,
        effects: &mut Vec<Effect>,
    ) {
        if self.asked.len() >= ASKED_MAX {
            let why = format!("{ASKED_MAX} questions are open at this gateway; ask again later");
            effects.push(unavailable(ticket, why));
            return;
        }
        let node = match &question {
            Question::Channel { key } => {
                let shard = self.sharding.shard_of(key);
                Some(&self.shards[usize::from(shard.0)].owner.id)
            }
            Question::Shard { shard } => match self.shards.get(usize::from(shard.0)) {
                Some(shard) => Some(&shard.owner.id),
                None => {
                    let why = format!("there are shards 0 to {}", self.shards.len() - 1);
                    effects.push(unavailable(ticket, why));
                    return;
                }
            },
            Question::Nodes
            | Question::Gateways
            | Question::Shards
            | Question::Standbys
            | Question::Events => {
                // Before the first beat, whoever is in the map.
                let first = || Some(&self.shards.first()?.owner.id);
                let named = first().filter(|_| self.nodes.is_empty());
                self.nodes.any(now).or(named)
            }
        };
        let Some(node) = node.cloned() else {
            let why = "no node was heard on the bus in the last 2 s; are nodes running?";
            effects.push(unavailable(ticket, why.into()));
            return;
        };
        let asked = Asked {
            node,
            question,
            deadline: now + PATIENCE,
            redirected: false,
        };
        effects.push(asked.request(ticket));
        self.asked.insert(ticket, asked);
    }

    /// A node has answered. Another one that it names is asked, once: the map
    /// of either may be old, and both at once means that the shard is moving.
    pub(super) fn inspected(&mut self, id: u64, answer: Answer, effects: &mut Vec<Effect>) {
        let ticket = Ticket(id);
        let Some(asked) = self.asked.get_mut(&ticket) else {
            return;
        };
        let answer = match answer {
            Answer::NotOwner { owner } if !asked.redirected => {
                asked.redirected = true;
                asked.node = owner.id;
                effects.push(asked.request(ticket));
                return;
            }
            Answer::NotOwner { owner } => Answer::Unavailable(format!(
                "node {} was named as the owner and says that it is {}; the shard is moving: ask again",
                asked.node, owner.id
            )),
            answer => answer,
        };
        self.asked.remove(&ticket);
        effects.push(Effect::Told { ticket, answer });
    }

    pub(super) fn tick_asked(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        self.asked.retain(|ticket, asked| {
            let waits = asked.deadline > now;
            if !waits {
                let why = format!("node {} did not answer within 2 s", asked.node);
                effects.push(unavailable(*ticket, why));
            }
            waits
        });
    }
}

impl Asked {
    pub(super) fn request(&self, ticket: Ticket) -> Effect {
        Effect::Request {
            node: self.node.clone(),
            request: Request::Inspect {
                id: ticket.0,
                question: self.question.clone(),
            },
        }
    }
}

fn unavailable(ticket: Ticket, why: String) -> Effect {
    let answer = Answer::Unavailable(why);
    Effect::Told { ticket, answer }
}
