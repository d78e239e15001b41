//! A tap on an interface, to see what a wire really carries.

use crate::{
    Context, Netns, Result,
    packet::{Packet, ethertype},
};
use nix::{
    net::if_::if_nametoindex,
    sys::{
        socket::{
            AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
        },
        time::{TimeVal, TimeValLike},
    },
};
use std::{
    net::IpAddr,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

/// Bytes that may wait to be looked at, as the kernel counts them (some 800 for a small frame).
const QUEUE: usize = 64 << 20;

/// A frame by its outermost headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    pub ethertype: u16,
    /// Of IP packets.
    pub ip: Option<Outer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub ports: Option<(u16, u16)>,
}

/// Runs until [`Capture::stop`].
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Frame>>>,
}

impl Capture {
    /// Sees every frame that enters or leaves `interface` from the moment this returns.
    pub fn start(netns: &Netns, interface: &str) -> Result<Self> {
        let (fd, index) = netns.run(|| {
            let fd =
                socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
            setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::milliseconds(20))?;
            // A busy machine lets this thread wait for a second and more.
            setsockopt(&fd, sockopt::RcvBufForce, &QUEUE)?;
            let index = if_nametoindex(interface).during(|| format!("looking up {interface}"))?;
            Ok((fd, index))
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        Ok(Self { stop, thread: thread::spawn(move || record(&fd, index as usize, &stopped)) })
    }

    /// Everything seen, in order.
    pub fn stop(self) -> Result<Vec<Frame>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|p| std::panic::resume_unwind(p))
    }
}

/// The socket hears all interfaces of its namespace; `index` is the one that counts.
fn record(fd: &OwnedFd, index: usize, stop: &AtomicBool) -> Result<Vec<Frame>> {
    let mut frames = Vec::new();
    let mut buffer = vec![0u8; 65_536 + 64];
    loop {
        match recvfrom::<LinkAddr>(fd.as_raw_fd(), &mut buffer) {
            Ok((length, Some(from))) if from.ifindex() == index => frames.extend(parse(&buffer[..length])),
            Ok(_) => {}
            // Stops only on an empty queue: what was on the wire before is in.
            Err(nix::Error::EAGAIN) if stop.load(Ordering::Relaxed) => return Ok(frames),
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

fn parse(frame: &[u8]) -> Option<Frame> {
    let ip = Packet::ethernet(frame).map(|p| Outer {
        source: p.source,
        destination: p.destination,
        protocol: p.protocol,
        ports: p.ports(),
    });
    Some(Frame { ethertype: ethertype(frame)?, ip })
}
