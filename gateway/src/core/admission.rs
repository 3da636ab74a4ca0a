//! Whom a gateway lets in: it counts connections and how often new ones come, all
//! in all, by app, and by the address that they come from.

use std::collections::HashMap;
use std::time::Duration;

use proto::id::AppId;
use proto::time::Timestamp;

use super::address::Origin;
use super::limits::{Bucket, Limiter, Rate};

/// What a gateway has room for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections.
    pub connections_max: usize,
    /// Open files of clients: one for each, and more for those that come over HTTP/2.
    pub files_max: usize,
    /// Connections at once of clients that are not let in and told why.
    pub refusals_max: usize,
    /// By address. `None`: addresses are not told apart.
    pub of_address: Option<AddressLimits>,
}

/// What one address may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressLimits {
    /// Connections.
    pub connections_max: u32,
    /// New ones.
    pub connects: Rate,
}

/// What one app may. `None`: as much as there is room for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AppLimits {
    /// Connections.
    pub connections_max: Option<u32>,
    /// New ones.
    pub connects: Option<Rate>,
    /// Requests to the API.
    pub requests: Option<Rate>,
    /// Publications: an event counts once for each of its channels.
    pub publishes: Option<Rate>,
}

/// Why somebody was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Whose limit it was.
    pub of: Whose,
    /// Which one.
    pub limiter: Limiter,
    /// How long to wait before trying again.
    pub wait: Duration,
}

/// Whose limit was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The gateway is full.
    Gateway,
    /// The app's.
    App,
    /// Of the address that the client came from.
    Address,
}

/// For how many addresses counts are kept, or for twice as many as are connected.
/// Beyond, those that only wait for
/// their rate are forgotten: who has so many addresses is not held by limits of
/// one.
const ADDRESSES_MAX: usize = 100_000;

/// Among so many seconds refused clients are spread.
const SPREAD_SECS: u64 = 10;

/// Who is in.
#[derive(Debug)]
pub struct Admission {
    limits: Limits,
    connections: usize,
    /// Files that some of them need besides their own.
    further_files: usize,
    refusals: usize,
    apps: HashMap<AppId, OfApp>,
    addresses: HashMap<Origin, OfAddress>,
    /// With how many of them some are forgotten.
    forget_at: usize,
    /// So many have been told to come back later.
    turned_away: u64,
}

#[derive(Debug)]
struct OfApp {
    limits: AppLimits,
    connections: u32,
    connects: Bucket,
    requests: Bucket,
    publishes: Bucket,
}

#[derive(Debug)]
struct OfAddress {
    connections: u32,
    connects: Bucket,
}

/// Stands where there is no rate.
const NEVER_ASKED: Rate = Rate { burst: 1, per_s: 1 };

impl OfApp {
    fn new(limits: AppLimits, now: Timestamp) -> Self {
        let full = |rate: Option<Rate>| Bucket::full(rate.unwrap_or(NEVER_ASKED), now);
        Self {
            connections: 0,
            connects: full(limits.connects),
            requests: full(limits.requests),
            publishes: full(limits.publishes),
            limits,
        }
    }
}

/// Takes from a bucket of an app, if there is a rate.
fn take(
    bucket: &mut Bucket,
    count: u32,
    rate: Option<Rate>,
    now: Timestamp,
    limiter: Limiter,
) -> Result<(), Refusal> {
    let Some(rate) = rate else { return Ok(()) };
    if bucket.take_many(count, rate, now) {
        return Ok(());
    }
    let (of, wait) = (Whose::App, bucket.wait(rate));
    Err(Refusal { of, limiter, wait })
}

impl Admission {
    /// Nobody is in yet.
    pub fn new(
        limits: Limits,
        apps: impl IntoIterator<Item = (AppId, AppLimits)>,
        now: Timestamp,
    ) -> Self {
        let of_app = |(id, limits)| (id, OfApp::new(limits, now));
        Self {
            limits,
            connections: 0,
            further_files: 0,
            refusals: 0,
            apps: apps.into_iter().map(of_app).collect(),
            addresses: HashMap::new(),
            forget_at: ADDRESSES_MAX,
            turned_away: 0,
        }
    }

    /// Connections now.
    pub fn connections(&self) -> usize {
        self.connections
    }

    /// Whether the gateway could let another client in.
    pub fn has_room(&self) -> bool {
        let files = self.connections + self.further_files;
        self.connections < self.limits.connections_max && files < self.limits.files_max
    }

    /// Somebody who is in needs so many files more, until [`Self::close`].
    ///
    /// # Errors
    /// There are none.
    pub fn open(&mut self, files: usize) -> Result<(), Refusal> {
        let all = self.connections + self.further_files + files;
        if all > self.limits.files_max {
            return Err(self.too_many(Whose::Gateway));
        }
        self.further_files += files;
        Ok(())
    }

    /// These files are closed.
    pub fn close(&mut self, files: usize) {
        self.further_files -= files;
    }

    /// Somebody connects, whatever for.
    ///
    /// # Errors
    /// Its address does so too often.
    pub fn knock(&mut self, from: Option<Origin>, now: Timestamp) -> Result<(), Refusal> {
        let Some((origin, limits)) = from.zip(self.limits.of_address) else {
            return Ok(());
        };
        let of_address = self.of_address(origin, limits.connects, now);
        if of_address.connects.take(limits.connects, now) {
            return Ok(());
        }
        Err(Refusal {
            of: Whose::Address,
            limiter: Limiter::ConnectIp,
            wait: of_address.connects.wait(limits.connects),
        })
    }

    /// A client of an app is to be let in. It is in until [`Self::leave`].
    ///
    /// # Errors
    /// Why it is not let in.
    pub fn enter(
        &mut self,
        app: &AppId,
        from: Option<Origin>,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let from = from.zip(self.limits.of_address);
        if let Some((origin, limits)) = from {
            let of_address = self.of_address(origin, limits.connects, now);
            if of_address.connections >= limits.connections_max {
                return Err(self.too_many(Whose::Address));
            }
        }
        let has_room = self.has_room();
        let Some(of_app) = self.apps.get_mut(app) else {
            // Who names an unknown app does not come here.
            return Ok(());
        };
        let rate = of_app.limits.connects;
        take(&mut of_app.connects, 1, rate, now, Limiter::ConnectApp)?;
        let most = of_app.limits.connections_max;
        if most.is_some_and(|most| of_app.connections >= most) {
            return Err(self.too_many(Whose::App));
        }
        if !has_room {
            return Err(self.too_many(Whose::Gateway));
        }
        of_app.connections += 1;
        self.connections += 1;
        if let Some(of_address) = from.and_then(|(origin, _)| self.addresses.get_mut(&origin)) {
            of_address.connections += 1;
        }
        Ok(())
    }

    /// A client that was let in is gone.
    pub fn leave(&mut self, app: &AppId, from: Option<Origin>) {
        let Some(of_app) = self.apps.get_mut(app) else {
            return;
        };
        of_app.connections -= 1;
        self.connections -= 1;
        if let Some(of_address) = from.and_then(|origin| self.addresses.get_mut(&origin)) {
            of_address.connections -= 1;
        }
    }

    /// A client is not let in: whether there is room for its connection until it
    /// has been told why. If so, until [`Self::forget_refused`].
    pub fn keep_refused(&mut self) -> bool {
        let has_room = self.refusals < self.limits.refusals_max;
        self.refusals += usize::from(has_room);
        has_room
    }

    /// A client that was not let in has been told.
    pub fn forget_refused(&mut self) {
        self.refusals -= 1;
    }

    /// An app's backend asks for something.
    ///
    /// # Errors
    /// It asks too often.
    pub fn request(&mut self, app: &AppId, now: Timestamp) -> Result<(), Refusal> {
        let Some(of_app) = self.apps.get_mut(app) else {
            return Ok(());
        };
        let rate = of_app.limits.requests;
        take(&mut of_app.requests, 1, rate, now, Limiter::Api)
    }

    /// An app publishes into so many channels.
    ///
    /// # Errors
    /// It does so too often.
    pub fn publish(&mut self, app: &AppId, channels: u32, now: Timestamp) -> Result<(), Refusal> {
        let Some(of_app) = self.apps.get_mut(app) else {
            return Ok(());
        };
        let rate = of_app.limits.publishes;
        take(&mut of_app.publishes, channels, rate, now, Limiter::Publish)
    }

    fn of_address(&mut self, origin: Origin, rate: Rate, now: Timestamp) -> &mut OfAddress {
        if self.addresses.len() >= self.forget_at && !self.addresses.contains_key(&origin) {
            self.forget_some(rate, now);
        }
        self.addresses.entry(origin).or_insert_with(|| OfAddress {
            connections: 0,
            connects: Bucket::full(rate, now),
        })
    }

    /// Forgets addresses that have no connection: those that have rested, or all
    /// of them if that makes too little room.
    fn forget_some(&mut self, rate: Rate, now: Timestamp) {
        let rests = |of: &OfAddress| of.connections == 0 && of.connects.is_full(rate, now);
        self.addresses.retain(|_, of| !rests(of));
        if self.addresses.len() > ADDRESSES_MAX / 2 {
            self.addresses.retain(|_, of| of.connections > 0);
        }
        // Those that are connected stay, so it is not tried for each new one.
        self.forget_at = ADDRESSES_MAX.max(2 * self.addresses.len());
    }

    /// There are as many connections as there may be. Clients that are refused at
    /// the same time are told different times, so that they do not come back
    /// together.
    fn too_many(&mut self, of: Whose) -> Refusal {
        self.turned_away += 1;
        Refusal {
            of,
            limiter: Limiter::Connections,
            wait: Duration::from_secs(1 + self.turned_away % SPREAD_SECS),
        }
    }
}

#[cfg(test)]
mod tests;
