//! A member of a presence channel.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use gateway::app::Secret;
use gateway::core::auth::channel_signature;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::client::Pusher;

/// A member, and what it has been told.
#[derive(Debug)]
pub struct Member {
    /// Its connection.
    pub client: Pusher,
    /// Whom it knows of.
    pub users: BTreeSet<String>,
    /// How long it took from the request until the acknowledgement had come.
    pub waited: Duration,
}

impl Member {
    /// Connects and becomes a member.
    ///
    /// # Errors
    /// When it is not let in.
    pub async fn join(address: &str, channel: &str, user: &str) -> Result<Self> {
        Self::enter(Pusher::connect_to(address).await?, channel, user).await
    }

    /// A client becomes a member.
    ///
    /// # Errors
    /// When it is not let in.
    pub async fn enter(mut client: Pusher, channel: &str, user: &str) -> Result<Self> {
        let data = json!({ "user_id": user }).to_string();
        let secret = Secret::new("app-secret");
        let signature = channel_signature(
            &secret,
            client.socket_id.parse()?,
            &channel.parse()?,
            Some(&data),
        );
        let auth = format!("app-key:{signature}");
        let asked = Instant::now();
        client
            .send(&json!({
                "event": "pusher:subscribe",
                "data": { "channel": channel, "auth": auth, "channel_data": data },
            }))
            .await?;
        let text = client.text().await?;
        let waited = asked.elapsed();
        let frame: Value = serde_json::from_str(&text)?;
        ensure!(
            frame["event"] == "pusher_internal:subscription_succeeded",
            "not in: {frame}"
        );
        let told: Value = serde_json::from_str(frame["data"].as_str().context("text")?)?;
        let ids = told["presence"]["ids"].as_array().context("ids")?;
        let users = ids.iter().filter_map(|id| Some(id.as_str()?.to_owned()));
        let users = users.collect();
        Ok(Self {
            client,
            users,
            waited,
        })
    }

    /// The next that it is told of a member, such as `+a`; nobody comes who is there,
    /// or goes who is not.
    ///
    /// # Errors
    /// When it is not so.
    pub async fn told(&mut self) -> Result<String> {
        loop {
            let frame = self.client.frame().await?;
            let data = || -> Result<String> {
                let data: Value = serde_json::from_str(frame["data"].as_str().context("text")?)?;
                Ok(data["user_id"].as_str().context("a user")?.to_owned())
            };
            if frame["event"] == "pusher_internal:member_added" {
                let user = data()?;
                ensure!(self.users.insert(user.clone()), "{user} comes twice");
                return Ok(format!("+{user}"));
            }
            if frame["event"] == "pusher_internal:member_removed" {
                let user = data()?;
                ensure!(self.users.remove(&user), "{user} goes and is not there");
                return Ok(format!("-{user}"));
            }
        }
    }

    /// Until it knows of exactly these.
    ///
    /// # Errors
    /// When it is not so.
    pub async fn knows(&mut self, users: &BTreeSet<String>, within: Duration) -> Result<()> {
        let knows = async {
            while self.users != *users {
                self.told().await?;
            }
            Ok(())
        };
        match timeout(within, knows).await {
            Ok(told) => told,
            Err(_) => bail!("knows of {:?} after {within:?}", self.users),
        }
    }

    /// It is told of nobody for a while.
    ///
    /// # Errors
    /// When it is not so.
    pub async fn is_left_alone(&mut self, quiet: Duration) -> Result<()> {
        match timeout(quiet, self.told()).await {
            Ok(told) => bail!("was told {:?}", told?),
            Err(_) => Ok(()),
        }
    }
}
