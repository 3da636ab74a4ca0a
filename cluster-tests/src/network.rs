//! A network of two machines, as it were: two network namespaces with a cable
//! between them. What one sends to the other can be lost, and nobody is told.

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use crate::namespace::Namespace;

/// Where a server is, on the one machine.
pub const SERVER: &str = "10.77.0.1";
const CLIENT: &str = "10.77.0.2";
/// A machine that does not exist.
const NOBODY: &str = "02:00:00:00:00:99";

/// See the [module](self).
#[derive(Debug)]
pub struct Network {
    server: Namespace,
    /// Of the process that keeps the other one.
    client: u32,
}

impl Network {
    /// `None`: tests may make none here.
    ///
    /// # Errors
    /// When nothing is said in time.
    pub async fn make() -> Result<Option<Self>> {
        let client = format!(
            "ip link set lo up && ip addr add {CLIENT}/24 dev dunlin1 && ip link set dunlin1 up"
        );
        // The other one is there as soon as the cable can be put into it.
        let script = format!(
            "ip link set lo up && ip link add dunlin0 type veth peer name dunlin1 \
             && {{ unshare --net sleep infinity & said=$!; }} \
             && until [ \"$(readlink /proc/$said/ns/net)\" != \"$(readlink /proc/self/ns/net)\" ]; do sleep 0.01; done \
             && ip link set dunlin1 netns $said \
             && ip addr add {SERVER}/24 dev dunlin0 && ip link set dunlin0 up \
             && nsenter --target $said --net sh -c '{client}'"
        );
        let Some(server) = Namespace::make("--net", &script, "sh").await? else {
            return Ok(None);
        };
        let client = server.said.parse().context("a process id")?;
        Ok(Some(Self { server, client }))
    }

    /// The same command, run on the server's machine.
    ///
    /// # Errors
    /// When it has gone.
    pub fn at_server(&self, command: &Command) -> Result<Command> {
        self.server.within(command)
    }

    /// The same command, run on the client's machine.
    pub fn at_client(&self, command: &Command) -> Command {
        self.server.within_that_of(self.client, command)
    }

    /// From now on what the server sends is lost.
    ///
    /// # Errors
    /// When that cannot be done.
    pub async fn lose_what_the_server_sends(&self) -> Result<()> {
        let mut misled = Command::new("ip");
        misled.args(["neigh", "replace", CLIENT, "lladdr", NOBODY]);
        misled.args(["dev", "dunlin0", "nud", "permanent"]);
        let ended = self.at_server(&misled)?.output().await?;
        ensure!(ended.status.success(), "{ended:?}");
        Ok(())
    }

    /// Connections to a port that the server has not given up.
    ///
    /// # Errors
    /// When the server's machine has gone.
    pub fn established(&self, port: u16) -> Result<usize> {
        const ESTABLISHED: &str = "01";
        let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", self.server.pid()?))?;
        let port = format!(":{port:04X}");
        let counts = |line: &&str| {
            let mut fields = line.split_whitespace().skip(1);
            let (local, state) = (fields.next(), fields.nth(1));
            local.is_some_and(|local| local.ends_with(&port)) && state == Some(ESTABLISHED)
        };
        Ok(table.lines().filter(counts).count())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // A process of ours, which nobody else waits for, so the id is still its own.
        if let Some(client) = rustix::process::Pid::from_raw(self.client as i32) {
            let _ = rustix::process::kill_process(client, rustix::process::Signal::KILL);
        }
    }
}
