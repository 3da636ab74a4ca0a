//! Shell: where clients come in. [`Admission`] behind a lock, for all who take
//! requests, and guards that count clients out again.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proto::time::Timestamp;

use crate::app::{App, Apps};
use crate::core::address::Origin;
use crate::core::admission::{Admission, Limits, Refusal};

/// The door of a gateway; clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct Door {
    admission: Arc<Mutex<Admission>>,
}

impl Door {
    pub(crate) fn new(limits: Limits, apps: &Apps) -> Self {
        let apps = apps.iter().map(|app| (app.id.clone(), app.limits.clone()));
        let admission = Admission::new(limits, apps, Timestamp::now());
        Self {
            admission: Arc::new(Mutex::new(admission)),
        }
    }

    /// Somebody connects, whatever for.
    pub(crate) fn knock(&self, from: Option<IpAddr>) -> Result<(), Refusal> {
        self.lock().knock(from.map(Origin::of), Timestamp::now())
    }

    /// Lets a client in.
    pub(crate) fn enter(&self, app: &Arc<App>, from: Option<IpAddr>) -> Result<Seat, Refusal> {
        let from = from.map(Origin::of);
        self.lock().enter(&app.id, from, Timestamp::now())?;
        Ok(Seat {
            door: self.clone(),
            of: Some((Arc::clone(app), from)),
            further_files: 0,
        })
    }

    /// Keeps a client that is not let in until it has been told why, if there is
    /// room for it.
    pub(crate) fn keep_refused(&self) -> Option<Seat> {
        self.lock().keep_refused().then(|| Seat {
            door: self.clone(),
            of: None,
            further_files: 0,
        })
    }

    /// An app's backend asks for something.
    pub(crate) fn request(&self, app: &App) -> Result<(), Refusal> {
        match app.limits.requests {
            None => Ok(()),
            Some(_) => self.lock().request(&app.id, Timestamp::now()),
        }
    }

    /// An app publishes into so many channels.
    pub(crate) fn publish(&self, app: &App, channels: usize) -> Result<(), Refusal> {
        let channels = u32::try_from(channels).unwrap_or(u32::MAX);
        match app.limits.publishes {
            None => Ok(()),
            Some(_) => self.lock().publish(&app.id, channels, Timestamp::now()),
        }
    }

    /// Clients that are in.
    pub(crate) fn connections(&self) -> usize {
        self.lock().connections()
    }

    /// Whether the gateway could let another client in.
    pub(crate) fn has_room(&self) -> bool {
        self.lock().has_room()
    }

    fn lock(&self) -> MutexGuard<'_, Admission> {
        // Counts stay right: nothing in there is left half done.
        self.admission
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts one connection, until it is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    door: Door,
    /// `None`: it was refused and is only being told so.
    of: Option<(Arc<App>, Option<Origin>)>,
    further_files: usize,
}

impl Seat {
    /// The app that it is a client of, if it was let in.
    pub(crate) fn app(&self) -> Option<&Arc<App>> {
        self.of.as_ref().map(|(app, _)| app)
    }

    /// Its client needs so many files more.
    pub(crate) fn open(&mut self, files: usize) -> Result<(), Refusal> {
        self.door.lock().open(files)?;
        self.further_files += files;
        Ok(())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut admission = self.door.lock();
        match &self.of {
            Some((app, from)) => admission.leave(&app.id, *from),
            None => admission.forget_refused(),
        }
        admission.close(self.further_files);
    }
}
