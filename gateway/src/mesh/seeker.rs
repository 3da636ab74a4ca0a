//! Shell: a gateway that has subscribed to everything and looks for the map.
//! Drives [`Discovery`].

use std::sync::Arc;

use proto::bus::{BusHandle, Subscription};
use proto::codec;
use proto::inspection::Answer;
use proto::subject::{Address, Subject};
use proto::time::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use super::{Ears, Handle, MAILBOX, Mail, Mesh, Output, TICK};
use crate::core::discovery::{Discovery, Effect, Found, Input, Trouble};
use crate::core::edge::Edge;
use crate::metrics::Metrics;
use crate::{Config, Error};

/// Hears the bus, and knows nobody yet.
pub(crate) struct Seeker {
    config: Config,
    output: Output,
    ears: Ears,
    handle: Handle,
}

impl Seeker {
    /// Subscribes.
    pub(crate) async fn subscribe(
        config: Config,
        bus: BusHandle,
        metrics: Arc<Metrics>,
    ) -> Result<Self, Error> {
        let subscribe = async |address: Address| -> Result<Subscription, Error> {
            let subject = Subject {
                cluster: config.cluster.clone(),
                address,
            };
            let subscribed = bus.subscribe(subject.clone()).await;
            subscribed.map_err(|error| Error::Subscribe { subject, error })
        };
        let id = &config.gateway.id;
        let (sender, mailbox) = mpsc::channel(MAILBOX);
        let ears = Ears {
            links: subscribe(Address::Gateway(id.clone())).await?,
            inbox: subscribe(Address::Inbox(id.clone())).await?,
            beats: subscribe(Address::NodeBeats).await?,
            maps: subscribe(Address::Map).await?,
            mailbox,
        };
        Ok(Self {
            output: Output {
                cluster: config.cluster.clone(),
                bus,
                metrics,
            },
            config,
            ears,
            handle: Handle {
                mailbox: sender,
                shards: 0,
            },
        })
    }

    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Waits for the map. `None`: the shutdown came first.
    pub(crate) async fn find(mut self, mut shutdown: watch::Receiver<bool>) -> Option<Mesh> {
        let mut discovery = Discovery::new(self.config.gateway.clone(), Timestamp::now());
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut effects = Vec::new();
        loop {
            let input = tokio::select! {
                _ = shutdown.wait_for(|stop| *stop) => return None,
                _ = tick.tick() => Some(Input::Tick),
                Some(bytes) = self.ears.inbox.next() => self.decode(&bytes),
                Some(bytes) = self.ears.beats.next() => self.decode(&bytes),
                Some(mail) = self.ears.mailbox.recv() => {
                    refuse(mail);
                    None
                }
            };
            if let Some(input) = input {
                discovery.handle(Timestamp::now(), input, &mut effects);
            }
            for effect in effects.drain(..) {
                if let Some(found) = self.perform(effect) {
                    return Some(self.start(found));
                }
            }
        }
    }

    fn decode(&self, bytes: &[u8]) -> Option<Input> {
        match codec::decode(bytes) {
            Ok(message) => {
                self.output.metrics.count_received(&message);
                Some(Input::Message(message))
            }
            Err(error) => {
                self.output.metrics.bus_malformed.inc();
                tracing::warn!(gateway = %self.config.gateway.id, %error, "dropped a message from the bus");
                None
            }
        }
    }

    fn perform(&mut self, effect: Effect) -> Option<Found> {
        let gateway = &self.config.gateway.id;
        match effect {
            Effect::Request { node, me, request } => {
                self.output.request(&me, 0, &node, vec![request]);
            }
            Effect::Raised { to } => {
                tracing::warn!(%gateway, incarnation = to.0, "a node knows a later start of this gateway; taking a higher incarnation (is the clock behind?)");
            }
            Effect::Complain(trouble) => self.complain(&trouble),
            Effect::Malformed => self.output.metrics.bus_malformed.inc(),
            Effect::Found(found) => return Some(found),
        }
        None
    }

    fn complain(&self, trouble: &Trouble) {
        let cluster = &self.config.cluster;
        match trouble {
            Trouble::NoNode => tracing::warn!(
                %cluster,
                "no node heard on the bus; waiting for one (is a node of this cluster name running on this bus?)"
            ),
            Trouble::NotFormed { node } => tracing::warn!(
                %cluster, %node,
                "nodes are heard, but their cluster has no shard map yet; waiting for it to be formed"
            ),
            Trouble::NoAnswer { node } => tracing::warn!(
                %cluster, %node,
                "a node is heard but does not send its shard map; asking on"
            ),
            Trouble::Unsound { node } => tracing::warn!(
                %cluster, %node,
                "the shard map that a node sends makes no sense; asking on"
            ),
        }
    }

    fn start(self, found: Found) -> Mesh {
        let Found {
            me,
            map,
            namespaces,
        } = found;
        let config = Config {
            gateway: me.clone(),
            ..self.config
        };
        let edge = Edge::new(me, &map, namespaces);
        Mesh::new(Arc::new(config), self.output, self.ears, self.handle, edge)
    }
}

/// Before there is a map only inspectors have a handle; whoever else came would
/// see its answer dropped.
fn refuse(mail: Mail) {
    if let Mail::Ask { answer, .. } = mail {
        let why = "the gateway has not found a node yet";
        let _ = answer.send(Answer::Unavailable(why.into()));
    }
}
