//! One interface whose router is found by its advertisements: sockets and a clock around [`Discovery`].
//!
//! The kernel must not act on what that router says: FRR's advertisements, for one, would make it the default router.

use super::socket::set_raw;
use crate::discovery::{
    ADVERTISEMENT, Arrival, Discovery, Output, SOLICITATION, advertisement, solicitation,
};
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, recvmsg,
    sendto, setsockopt, socket, sockopt,
};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, IoSliceMut};
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

/// Between two attempts to open an interface, and how often it is looked whether it is still the same.
const LOOK: Duration = Duration::from_secs(1);

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

const ICMPV6_FILTER: i32 = 1;
/// Longer than the longest packet that is looked at whole: options beyond are cut, and the packet is discarded.
const BUFFER: usize = 2048;

/// What is known of the router of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Located {
    /// Why nobody can be looked for, or that nobody has answered.
    Nowhere(String),
    At {
        address: Ipv6Addr,
        interface: u32,
    },
}

impl Located {
    pub fn socket_address(&self, port: u16) -> Option<SocketAddrV6> {
        match *self {
            Located::Nowhere(_) => None,
            Located::At { address, interface } => Some(SocketAddrV6::new(address, port, 0, interface)),
        }
    }
}

/// Ends with its handle.
#[derive(Debug)]
pub(super) struct Search {
    task: JoinHandle<()>,
    doubts: Arc<Notify>,
    located: watch::Receiver<Located>,
}

impl Search {
    /// `prepare` hears of every change before anybody else.
    pub fn start(name: String, mut prepare: impl FnMut(&Located) + Send + 'static) -> Search {
        let doubts = Arc::new(Notify::new());
        let (tell, located) = watch::channel(Located::Nowhere(format!("{name} is looked at")));
        let tell = move |located: Located| {
            if *tell.borrow() != located {
                prepare(&located);
                tell.send_replace(located);
            }
        };
        let task = tokio::spawn(run(name, doubts.clone(), tell));
        Search { task, doubts, located }
    }

    pub fn located(&self) -> Located {
        self.located.borrow().clone()
    }

    /// Waits for what is not known yet. May be dropped and called again.
    pub async fn changed(&mut self) {
        if self.located.changed().await.is_err() {
            // The task never ends before its handle.
            std::future::pending().await
        }
    }

    /// The router that was found cannot be reached.
    pub fn doubt(&self) {
        self.doubts.notify_one();
    }
}

impl Drop for Search {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(name: String, doubts: Arc<Notify>, mut tell: impl FnMut(Located)) {
    loop {
        match Interface::open(&name) {
            Ok(interface) => {
                tell(Located::Nowhere(format!(
                    "no router has advertised itself on {name} (router advertisements, RFC 4861)"
                )));
                interface.serve(&doubts, &mut tell).await;
            }
            Err(error) => tell(Located::Nowhere(format!("cannot look for a router on {name}: {error}"))),
        }
        sleep(LOOK).await;
    }
}

struct Interface {
    name: String,
    index: u32,
    socket: AsyncFd<OwnedFd>,
}

impl Interface {
    fn open(name: &str) -> io::Result<Interface> {
        let index = if_nametoindex(name)?;
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_ra"), "0")?;
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Inet6, SockType::Raw, flags, Some(SockProtocol::IcmpV6))?;
        // Before anything can be received.
        only_discovery(&fd)?;
        setsockopt(&fd, sockopt::BindToDevice, &name.into())?;
        setsockopt(&fd, sockopt::Ipv6RecvHopLimit, &true)?;
        set_raw(&fd, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS, &255i32.to_ne_bytes())?;
        set_raw(&fd, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP, &0i32.to_ne_bytes())?;
        set_raw(&fd, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF, &index.to_ne_bytes())?;
        let group = [ALL_ROUTERS.octets().as_slice(), &index.to_ne_bytes()].concat();
        set_raw(&fd, libc::IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP, &group)?;
        // SAFETY: the descriptor is owned, and stays open and the same for as long as it is inside.
        let socket = unsafe { AsyncFd::register(fd) }?;
        Ok(Interface { name: name.to_owned(), index, socket })
    }

    /// Until the interface is another one, or gone.
    async fn serve(&self, doubts: &Notify, tell: &mut impl FnMut(Located)) {
        let epoch = Instant::now();
        let seed = RandomState::new().build_hasher().finish();
        let mut discovery = Discovery::new(Duration::ZERO, seed);
        while if_nametoindex(self.name.as_str()) == Ok(self.index) {
            let due = (epoch + discovery.deadline()).min(Instant::now() + LOOK);
            tokio::select! {
                received = self.receive(&mut discovery, epoch) => if let Err(error) = received {
                    tracing::debug!(interface = self.name, %error, "cannot receive router advertisements");
                    sleep(LOOK).await;
                },
                () = doubts.notified() => discovery.doubt(epoch.elapsed()),
                () = sleep_until(due) => {}
            }
            for output in discovery.tick(epoch.elapsed()) {
                if let Err(error) = self.send(output) {
                    tracing::debug!(interface = self.name, %error, "cannot advertise");
                    discovery.not_sent(epoch.elapsed(), output);
                }
            }
            if let Some(address) = discovery.router() {
                tell(Located::At { address, interface: self.index });
            }
        }
    }

    fn send(&self, output: Output) -> io::Result<()> {
        let to = |group| SockaddrIn6::from(SocketAddrV6::new(group, 0, 0, self.index));
        let fd = self.socket.as_raw_fd();
        match output {
            Output::Advertise => sendto(fd, &advertisement(), &to(ALL_NODES), MsgFlags::empty()),
            Output::Solicit => sendto(fd, &solicitation(), &to(ALL_ROUTERS), MsgFlags::empty()),
        }?;
        Ok(())
    }

    /// One packet.
    async fn receive(&self, discovery: &mut Discovery, epoch: Instant) -> io::Result<()> {
        let mut guard = self.socket.readable().await?;
        let mut buffer = [0; BUFFER];
        let Ok(received) = guard.try_io(|socket| receive_from(socket.get_ref(), &mut buffer)) else {
            return Ok(());
        };
        let Some((length, from, hop_limit)) = received? else { return Ok(()) };
        let arrival = Arrival { bytes: &buffer[..length], from, hop_limit };
        if let Err(why) = discovery.received(epoch.elapsed(), &arrival) {
            tracing::debug!(interface = self.name, %from, %why, "discarded");
        }
        Ok(())
    }
}

/// `None`: a packet of which the kernel does not say enough.
fn receive_from(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<(usize, Ipv6Addr, u8)>> {
    let mut room = nix::cmsg_space!(libc::c_int);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrIn6>(socket.as_raw_fd(), &mut parts, Some(&mut room), MsgFlags::empty())?;
    let hop_limit = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv6HopLimit(limit) => u8::try_from(limit).ok(),
        _ => None,
    });
    let from = message.address.map(|address| address.ip());
    Ok(from.zip(hop_limit).map(|(from, hop_limit)| (message.bytes, from, hop_limit)))
}

/// `struct icmp6_filter`: a bit set for each type that is not wanted.
fn only_discovery(fd: &OwnedFd) -> io::Result<()> {
    let mut blocked = [u32::MAX; 8];
    for wanted in [SOLICITATION, ADVERTISEMENT] {
        blocked[usize::from(wanted >> 5)] &= !(1 << (wanted & 31));
    }
    let value: Vec<u8> = blocked.iter().flat_map(|word| word.to_ne_bytes()).collect();
    set_raw(fd, libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &value)
}
