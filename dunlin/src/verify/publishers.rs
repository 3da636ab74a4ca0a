//! The backends that publish: each has a connection to a gateway, and one
//! publication at a time. One that is not answered is sent again with the same
//! key, at another gateway, until its outcome is known or patience ends.

use std::rc::Rc;
use std::time::Duration;

use hyper::StatusCode;
use serde_json::Value;
use tokio::time::{Instant, MissedTickBehavior};

use super::ledger::Outcome;
use super::{LOOK_EVERY, OPEN_MAX, Run, Tasks, wire};
use crate::client::{Connection, Event, Failed, problem};

/// Publications per second of one publisher. Few: each waits for its answer, and
/// when nothing is answered it is they who have something under way.
const RATE_EACH: u32 = 10;
const PUBLISHERS_MAX: usize = 256;
/// How long one publication is tried. Well within the time that a server
/// remembers keys.
const TRY_FOR: Duration = Duration::from_secs(30);
/// How much of what a publisher could not send in time it makes up for.
const CATCH_UP: Duration = Duration::from_secs(1);
/// Between tries: doubled each time, up to the last.
const BACKOFF: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

/// Starts all publishers. They end after [`Run::ended`].
pub(super) fn start(run: &Rc<Run>) -> Tasks {
    let gateways = run.options.urls.len();
    let count = run.options.rate.div_ceil(RATE_EACH) as usize;
    let count = count.clamp(gateways, PUBLISHERS_MAX.max(gateways));
    let mut tasks = Tasks::new();
    for id in 0..count {
        let publisher = Publisher {
            run: Rc::clone(run),
            id,
            gateway: id % gateways,
            connection: None,
        };
        tasks.spawn_local(publisher.publish(count));
    }
    tasks
}

struct Publisher {
    run: Rc<Run>,
    id: usize,
    /// Which of the gateways it is at.
    gateway: usize,
    connection: Option<Connection>,
}

/// What one try has shown.
enum Answer {
    Known(Outcome),
    /// Nothing was published; trying again is safe.
    NotYet(String),
    /// It may have been published.
    Perhaps(String),
}

impl Publisher {
    /// Publishes into all channels in turn, one of so many publishers.
    async fn publish(mut self, of: usize) {
        let run = Rc::clone(&self.run);
        let period = Duration::from_secs(1) * of as u32 / run.options.rate;
        let first = Instant::now() + period * self.id as u32 / of as u32;
        let mut interval = tokio::time::interval_at(first, period.max(Duration::from_micros(1)));
        interval.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let channels = run.channels.len();
        let mut channel = self.id * channels / of;
        loop {
            // A server that was away is not punished with all that it missed.
            if interval.tick().await.elapsed() > CATCH_UP {
                interval.reset();
            }
            while run.ledger.borrow().open() >= OPEN_MAX && !run.ended.get() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            if run.ended.get() {
                return;
            }
            channel = (channel + 1) % channels;
            let number = run.ledger.borrow_mut().sent(channel, run.now());
            let size = run.options.size as usize;
            let data = wire::data(run.id, channel, self.id, number, size);
            let key = format!("verify-{:016x}-{number}", run.id);
            let outcome = self.deliver(channel, &data, &key).await;
            let now = run.now();
            run.ledger.borrow_mut().answered(number, outcome, now);
        }
    }

    async fn deliver(&mut self, channel: usize, data: &str, key: &str) -> Outcome {
        let began = Instant::now();
        let mut wait = BACKOFF[0];
        let mut perhaps = false;
        loop {
            let why = match self.attempt(channel, data, key).await {
                // Refused now, but perhaps taken before.
                Answer::Known(Outcome::Refused) if perhaps => return Outcome::Unknown,
                Answer::Known(outcome) => return outcome,
                Answer::NotYet(why) => why,
                Answer::Perhaps(why) => {
                    perhaps = true;
                    if !self.run.options.idempotent {
                        return Outcome::Unknown;
                    }
                    why
                }
            };
            if began.elapsed() >= TRY_FOR {
                return if perhaps {
                    Outcome::Unknown
                } else {
                    Outcome::Refused
                };
            }
            self.run.count(|counts| {
                counts.publish_retries += 1;
                counts.last_failure = Some(why);
            });
            self.connection = None;
            self.gateway = (self.gateway + 1) % self.run.options.urls.len();
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(BACKOFF[1]);
        }
    }

    async fn attempt(&mut self, channel: usize, data: &str, key: &str) -> Answer {
        let run = &self.run;
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => match run.options.urls[self.gateway].connect().await {
                Ok(connection) => self.connection.insert(connection),
                Err(error) => return Answer::NotYet(format!("{error:#}")),
            },
        };
        let event = Event {
            channel: &run.channels[channel],
            name: "verify",
            data,
            idempotency_key: run.options.idempotent.then_some(key),
        };
        let (status, body) = match connection.publish(&run.app, &event).await {
            Ok(answer) => answer,
            Err(failed) => {
                self.connection = None;
                return match failed {
                    Failed::NotSent(error) => Answer::NotYet(format!("{error:#}")),
                    Failed::Unknown(error) => Answer::Perhaps(format!("{error:#}")),
                };
            }
        };
        let why = || problem(status, &body);
        match status {
            StatusCode::OK => Answer::Known(Outcome::Accepted),
            StatusCode::SERVICE_UNAVAILABLE => match code(&body).as_str() {
                "overloaded" | "unavailable" => Answer::NotYet(why()),
                _ => Answer::Perhaps(why()),
            },
            status if status.is_client_error() => {
                run.count(|counts| counts.last_failure = Some(why()));
                Answer::Known(Outcome::Refused)
            }
            _ => Answer::Perhaps(why()),
        }
    }
}

fn code(body: &str) -> String {
    let body: Value = serde_json::from_str(body).unwrap_or_default();
    body["code"].as_str().unwrap_or_default().to_owned()
}
