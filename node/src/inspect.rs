//! Shell: asks a node what it knows, for its own admin address.

use std::time::Duration;

use proto::inspection::{Answer, Question};
use tokio::sync::{mpsc, oneshot};

/// Questions that may wait; those who ask wait, too.
pub(crate) const MAILBOX: usize = 64;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// A question and where its answer goes.
pub(crate) type Mail = (Question, oneshot::Sender<Answer>);

/// Tells what a node knows. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Inspector {
    mailbox: mpsc::Sender<Mail>,
}

impl Inspector {
    pub(crate) fn new(mailbox: mpsc::Sender<Mail>) -> Self {
        Self { mailbox }
    }

    /// Answers within 2 s, if need be with [`Answer::Unavailable`].
    pub async fn ask(&self, question: Question) -> Answer {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            // Whoever has ended drops the question, and that is an answer.
            let _ = self.mailbox.send((question, answer)).await;
            answered.await
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Answer::Unavailable("the node is ending".into()),
            Err(_) => Answer::Unavailable("the node did not answer in time".into()),
        }
    }
}
