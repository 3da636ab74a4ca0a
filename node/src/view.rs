//! What the mesh side of a node follows of the cluster: immutable snapshots
//! that are replaced whole.

use std::collections::VecDeque;
use std::sync::Arc;

use proto::inspection::{EventInfo, NodeInfo};
use proto::shard::ShardMap;
use tokio::sync::watch;

use crate::agreement::Agreement;

/// What a node's mesh side follows of the cluster.
#[derive(Debug, Clone)]
pub struct View {
    /// Who owns what; version 0 and no rows until the cluster has a map.
    pub map: watch::Receiver<Arc<ShardMap>>,
    /// Members, for those who look inside.
    pub members: watch::Receiver<Arc<Vec<NodeInfo>>>,
    /// Whether this node leads: the leader pushes map changes to gateways.
    pub leads: watch::Receiver<bool>,
    /// What has happened since this node began, for the same.
    pub events: watch::Receiver<Arc<VecDeque<EventInfo>>>,
    /// What else is agreed; `None`: the node is alone, and nobody stands by.
    pub agreement: Option<Agreement>,
}

impl View {
    /// A cluster of one node that never changes.
    pub fn fixed(map: ShardMap, member: NodeInfo) -> Self {
        Self {
            map: watch::channel(Arc::new(map)).1,
            members: watch::channel(Arc::new(vec![member])).1,
            leads: watch::channel(true).1,
            events: watch::channel(Arc::default()).1,
            agreement: None,
        }
    }

    /// Waits for a change; for ever when there will be none.
    pub(crate) async fn changed<T>(watched: &mut watch::Receiver<T>) {
        if watched.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use proto::id::{ClusterUuid, Incarnation, NodeRef};

    #[test]
    fn what_nobody_can_change_any_more_is_no_news() {
        let node = NodeRef {
            id: "n".parse().unwrap(),
            incarnation: Incarnation(1),
        };
        let first = Arc::new(ShardMap::standalone(ClusterUuid(1), 0, node));
        let (sender, mut map) = watch::channel(Arc::clone(&first));
        sender.send_replace(first);
        drop(sender);
        let mut changed = || View::changed(&mut map).now_or_never();
        assert_eq!(changed(), Some(()), "the last one is");
        assert_eq!(changed(), None, "or else a task would spin");
    }
}
