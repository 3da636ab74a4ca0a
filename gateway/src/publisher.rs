//! Shell: a gateway without clients, for tools that publish as gateways do.

use std::sync::Arc;

use proto::bus::BusHandle;
use proto::error::ErrorCode;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::core::uplink::{Accepted, Order};
use crate::metrics::Metrics;
use crate::{Config, Error, mesh};

/// Publishes straight to the owners, as a gateway does. Nodes take it for one.
#[derive(Debug)]
pub struct Publisher {
    mesh: mesh::Handle,
    task: JoinHandle<Result<(), Error>>,
}

impl Publisher {
    /// Finds a node and learns the map, however long that takes. `None`: the
    /// shutdown came first. Of the configuration only the names count.
    ///
    /// # Errors
    /// [`Error::Subscribe`].
    #[expect(
        clippy::disallowed_methods,
        reason = "shell: starts the task of the mesh"
    )]
    pub async fn join(
        config: Config,
        bus: BusHandle,
        metrics: Arc<Metrics>,
        shutdown: watch::Receiver<bool>,
    ) -> Result<Option<Self>, Error> {
        let seeker = mesh::Seeker::subscribe(config, bus, metrics).await?;
        let Some(mesh) = seeker.find(shutdown.clone()).await else {
            return Ok(None);
        };
        Ok(Some(Self {
            mesh: mesh.handle(),
            task: tokio::spawn(mesh.run(Vec::new(), shutdown)),
        }))
    }

    /// Publishes; answers within some seconds.
    ///
    /// # Errors
    /// Why the owner did not take it, or that nobody knows.
    pub async fn publish(&self, order: Order) -> Result<Accepted, ErrorCode> {
        self.mesh.publish(order).await
    }

    /// Returns when all has ended after a shutdown, or at the first failure.
    ///
    /// # Errors
    /// All but [`Error::Listen`] and [`Error::Subscribe`].
    pub async fn ended(self) -> Result<(), Error> {
        self.task.await.map_err(Error::Panicked)?
    }
}
