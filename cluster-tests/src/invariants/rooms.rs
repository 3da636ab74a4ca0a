//! What members should have been told, and were: the bookkeeping of the promises about
//! presence.

use std::collections::BTreeMap;

use crate::sim::trace::{Channel, Connection, Fact, Process, User, Users};

/// A connection that is to be a member of a channel.
#[derive(Debug)]
pub(super) struct Member {
    /// Whose it is.
    pub(super) user: User,
    /// Who is there, as it was told; `None`: it has not been told that it is in.
    pub(super) view: Option<Users>,
    /// Of which users it was told how often that they have gone.
    pub(super) went: BTreeMap<User, usize>,
    /// A life of its gateway was declared over meanwhile: until that states it again,
    /// it is not there.
    is_lost: bool,
}

/// Channels with their members.
#[derive(Debug, Default)]
pub(super) struct Rooms {
    /// Those that live.
    pub(super) members: BTreeMap<(Channel, Connection), Member>,
    /// How often a user had no connection left that was surely in a channel.
    pub(super) absences: BTreeMap<(Channel, User), usize>,
    /// How often lives of gateways were declared over.
    pub(super) gone: usize,
    at: BTreeMap<Connection, u8>,
}

impl Rooms {
    /// Something has happened.
    pub(super) fn see(&mut self, fact: &Fact) {
        match *fact {
            Fact::Connected {
                connection,
                gateway,
            } => {
                self.at.insert(connection, gateway);
            }
            Fact::Closed { connection } => self.close(connection),
            Fact::Ended {
                process: Process::Gateway(gateway),
            } => {
                let ended = self.at.iter().filter(|(_, at)| **at == gateway);
                let ended: Vec<Connection> = ended.map(|(connection, _)| *connection).collect();
                for connection in ended {
                    self.close(connection);
                }
            }
            Fact::Gone { gateway, .. } => {
                self.gone += 1;
                for ((_, connection), member) in &mut self.members {
                    member.is_lost |= self.at.get(connection) == Some(&gateway);
                }
            }
            Fact::Enters {
                connection,
                channel,
                user,
            } => {
                let member = Member {
                    user,
                    view: None,
                    went: BTreeMap::new(),
                    is_lost: false,
                };
                self.members.insert((channel, connection), member);
            }
            Fact::Exits {
                connection,
                channel,
            } => self.exit(channel, connection),
            Fact::Entered {
                connection,
                channel,
                users,
            } => {
                if let Some(member) = self.members.get_mut(&(channel, connection)) {
                    member.view = Some(users);
                }
            }
            Fact::Came {
                connection,
                channel,
                user,
            } => {
                if let Some(view) = self.view(channel, connection) {
                    *view |= 1 << user;
                }
            }
            Fact::Went {
                connection,
                channel,
                user,
            } => {
                if let Some(member) = self.members.get_mut(&(channel, connection)) {
                    *member.went.entry(user).or_default() += 1;
                }
                if let Some(view) = self.view(channel, connection) {
                    *view &= !(1 << user);
                }
            }
            _ => {}
        }
    }

    /// Who is there in truth.
    pub(super) fn users(&self, channel: Channel) -> Users {
        let members = self.of(channel);
        members.fold(0, |users, member| users | 1 << member.user)
    }

    fn of(&self, channel: Channel) -> impl Iterator<Item = &Member> {
        let members = self
            .members
            .range((channel, 0)..=(channel, Connection::MAX));
        members.map(|(_, member)| member)
    }

    fn view(&mut self, channel: Channel, connection: Connection) -> Option<&mut Users> {
        self.members.get_mut(&(channel, connection))?.view.as_mut()
    }

    fn close(&mut self, connection: Connection) {
        self.at.remove(&connection);
        let of = self.members.keys().filter(|(_, of)| *of == connection);
        let channels: Vec<Channel> = of.map(|(channel, _)| *channel).collect();
        for channel in channels {
            self.exit(channel, connection);
        }
    }

    fn exit(&mut self, channel: Channel, connection: Connection) {
        let Some(member) = self.members.remove(&(channel, connection)) else {
            return;
        };
        // One that has not been told yet that it is in may not be, nor one whose gateway
        // was declared gone.
        let is_surely_in = |other: &Member| other.view.is_some() && !other.is_lost;
        let is_other = |other: &Member| other.user == member.user && is_surely_in(other);
        if !self.of(channel).any(is_other) {
            *self.absences.entry((channel, member.user)).or_default() += 1;
        }
    }
}
