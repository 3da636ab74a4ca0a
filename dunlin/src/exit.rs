//! Exit codes, from sysexits(3) but for 1, and errors that carry one.

use std::process::ExitCode;

/// How a command ends when it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// What was to be shown is not so.
    Broken = 1,
    /// The command line is wrong.
    Usage = 64,
    /// Some of the input was refused.
    Data = 65,
    /// A server cannot be reached, or refuses.
    Unavailable = 69,
    /// A bug.
    Software = 70,
    /// Reading or writing failed.
    Io = 74,
    /// The configuration is wrong.
    Config = 78,
}

impl Exit {
    pub(crate) const ALL: [Self; 7] = [
        Self::Broken,
        Self::Usage,
        Self::Data,
        Self::Unavailable,
        Self::Software,
        Self::Io,
        Self::Config,
    ];

    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Self::Broken => "A promise did not hold (`dunlin verify`).",
            Self::Usage => "The command line is wrong.",
            Self::Data => "Some of the input was refused; the messages say which lines and why.",
            Self::Unavailable => "A server cannot be reached, or refuses.",
            Self::Software => "A bug in Dunlin.",
            Self::Io => {
                "Reading or writing failed; an address is in use; a data directory is damaged or in use."
            }
            Self::Config => {
                "The configuration is wrong; the message names file, line and key, or the name that another gateway has, too."
            }
        }
    }

    /// An error that ends the command with this code.
    pub(crate) fn with(self, error: impl Into<anyhow::Error>) -> Failure {
        Failure {
            exit: self,
            error: error.into(),
        }
    }

    /// The same, from a text.
    pub(crate) fn because(self, message: impl std::fmt::Display) -> Failure {
        Failure {
            exit: self,
            error: anyhow::anyhow!("{message}"),
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command ended, and with which code.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) error: anyhow::Error,
}
