//! Live flows that a step holds while it changes something, and the watch on them.

use super::matrix::grouped;
use crate::{
    Lab, Netns, Result,
    traffic::{Connection, Sequence},
    unmet, until,
};
use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

const PACE: Duration = Duration::from_millis(1);
const MOVES: Duration = Duration::from_secs(5);

/// Flows that must not lose anything, by name.
#[derive(Default)]
pub(super) struct Flows {
    connections: Vec<(String, Connection)>,
    sequences: Vec<(String, Sequence)>,
}

/// What went through, all of it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Delivered {
    pub flows: usize,
    pub packets: u64,
    pub bytes: u64,
    pub longest_gap: Duration,
}

impl Flows {
    pub fn tcp(&mut self, name: &str, from: &Netns, to: &Netns, address: SocketAddr) -> Result<()> {
        self.connections.push((name.into(), Connection::start(from, to, address, PACE)?));
        Ok(())
    }

    pub fn udp(&mut self, name: &str, from: &Netns, to: &Netns, address: SocketAddr) -> Result<()> {
        self.sequences.push((name.into(), Sequence::start(from, to, address, PACE)?));
        Ok(())
    }

    /// Waits until every flow has delivered something new.
    pub fn all_move(&self) -> Result<()> {
        let heard = || -> Vec<(&str, u64)> {
            let connections = self.connections.iter().map(|(name, c)| (name.as_str(), c.heard()));
            connections.chain(self.sequences.iter().map(|(name, s)| (name.as_str(), s.heard()))).collect()
        };
        let before = heard();
        until("every live flow moves", MOVES, || {
            match before.iter().zip(heard()).find(|((_, before), (_, now))| now <= &(before + 100)) {
                None => Ok(Some(())),
                Some(((name, _), _)) => unmet(format!("{name} stands still")),
            }
        })
    }

    /// Ends them; fails by naming the flow that lost something.
    pub fn finish(self) -> Result<Delivered> {
        let mut delivered =
            Delivered { flows: self.connections.len() + self.sequences.len(), ..Default::default() };
        for (name, connection) in self.connections {
            let report = connection.finish()?;
            if report.received != report.sent {
                return unmet(format!("{name}: {} of {} bytes arrived", report.received, report.sent));
            }
            if report.lost > 0 {
                return unmet(format!("{name}: {} segments left and never arrived", report.lost));
            }
            delivered.bytes += report.received;
        }
        for (name, sequence) in self.sequences {
            let report = sequence.finish()?;
            if report.lost > 0 {
                return unmet(format!("{name}: {} of {} packets lost", report.lost, grouped(report.sent)));
            }
            delivered.packets += report.sent;
            delivered.longest_gap = delivered.longest_gap.max(report.longest_gap);
        }
        Ok(delivered)
    }
}

/// Connects again and again until it is let in; the moment at which it was. `address` gets a listener in `to`.
pub(super) fn admitted(from: &Netns, to: &Netns, address: SocketAddr, deadline: Duration) -> Result<Instant> {
    const TRY: Duration = Duration::from_millis(4);
    let _listener = to.run(|| Ok(TcpListener::bind(address)?))?;
    from.run(|| {
        let start = Instant::now();
        while start.elapsed() < deadline {
            if TcpStream::connect_timeout(&address, TRY).is_ok() {
                return Ok(Instant::now());
            }
        }
        unmet(format!("{} is not let in to {address} after {} s", from.name(), deadline.as_secs()))
    })
}

/// Waits until nothing has been delivered for `silence`; the moment of the last byte.
pub(super) fn cut(
    name: &str,
    connection: &Connection,
    silence: Duration,
    deadline: Duration,
) -> Result<Instant> {
    until(&format!("the connection {name} is cut"), deadline, || {
        Ok(connection.last_heard().filter(|last| last.elapsed() >= silence))
    })
}

/// Pods and the vm by name, for the steps.
pub(super) fn netns<'a>(lab: &'a Lab, reference: &str) -> Result<&'a Netns> {
    if reference == "vm" { Ok(&lab.vm.netns) } else { lab.pod(reference).map(|p| &p.netns) }
}
