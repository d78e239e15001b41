//! A route netlink socket that sends many messages at once and says which of them failed.
//!
//! One batch is one `sendto`; the kernel works through it in order and answers each message. A message that fails does not
//! stop the later ones, so the first failure is the one that is reported.

use futures_util::{Stream, StreamExt};
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{
    proto::{ConnectionHandle, new_connection},
    sys::{AsyncSocket, SocketAddr, protocols::NETLINK_ROUTE},
};
use std::{fs::File, io, path::PathBuf, pin::pin, time::Duration};

/// The kernel answers at once; past this the socket is broken.
const DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("{what}: {source}")]
    Kernel { what: &'static str, source: io::Error },
    #[error("network namespace {}: {source}", path.display())]
    Namespace { path: PathBuf, source: io::Error },
    #[error("{path}: {source}")]
    Sysctl { path: String, source: io::Error },
    #[error("netlink socket: {0}")]
    Socket(io::Error),
    #[error("{what}: the kernel did not answer as expected")]
    Answer { what: &'static str },
    #[error("{0}")]
    Uplink(String),
}

impl NetError {
    /// The kernel's error number, where it was the kernel that refused.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Kernel { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// The kernel does not know what it was asked for: it has none of it. (nfnetlink says EINVAL of a subsystem that is not there.)
    pub fn is_unsupported(&self) -> bool {
        let unsupported =
            [libc::EOPNOTSUPP, libc::EPROTONOSUPPORT, libc::EAFNOSUPPORT, libc::ENOPROTOOPT, libc::EINVAL];
        self.errno().is_some_and(|code| unsupported.contains(&code))
    }
}

/// One message of a batch.
pub(super) struct Request {
    what: &'static str,
    message: NetlinkMessage<RouteNetlinkMessage>,
    /// Error numbers that are as good as success.
    fine: &'static [i32],
}

impl Request {
    pub fn new(what: &'static str, message: RouteNetlinkMessage, flags: u16) -> Self {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        Self { what, message, fine: &[] }
    }

    pub fn fine_if(self, fine: &'static [i32]) -> Self {
        Self { fine, ..self }
    }
}

/// The real [`super::Links`], [`super::Routes`] and [`super::Shaper`]: a socket in the namespace it was opened in.
///
/// Must be opened within a tokio runtime with I/O and time.
#[derive(Clone)]
pub struct Kernel {
    handle: ConnectionHandle<RouteNetlinkMessage>,
}

impl Kernel {
    /// In the namespace of the calling thread.
    pub fn open() -> Result<Self, NetError> {
        let open = || -> io::Result<Self> {
            let (mut connection, handle, _) = new_connection::<RouteNetlinkMessage>(NETLINK_ROUTE)?;
            connection.set_forward_ack(true);
            // Dumps are filtered by the kernel (4.20 or newer).
            connection.socket_mut().socket_mut().set_netlink_get_strict_chk(true)?;
            tokio::spawn(connection);
            Ok(Self { handle })
        };
        open().map_err(NetError::Socket)
    }

    /// In another namespace. Sockets stay in the namespace they were made in, so a thread goes there, makes one and ends.
    pub(super) async fn open_in(
        netns: &File,
        prepare: impl FnOnce() -> Result<(), NetError> + Send + 'static,
    ) -> Result<Self, NetError> {
        let netns = netns.try_clone().map_err(NetError::Socket)?;
        let runtime = tokio::runtime::Handle::current();
        let (tx, rx) = tokio::sync::oneshot::channel();
        let enter = move || {
            let _runtime = runtime.enter();
            nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET)
                .map_err(|e| NetError::Kernel { what: "enter the pod's namespace", source: e.into() })?;
            prepare()?;
            Self::open()
        };
        std::thread::Builder::new()
            .name("netns".into())
            .spawn(move || tx.send(enter()).is_ok())
            .map_err(NetError::Socket)?;
        rx.await.map_err(|_| NetError::Socket(io::ErrorKind::BrokenPipe.into()))?
    }

    /// Sends all and waits for all; returns the objects that the kernel answered, in order.
    pub(super) async fn batch(&self, requests: Vec<Request>) -> Result<Vec<RouteNetlinkMessage>, NetError> {
        let (expected, messages): (Vec<_>, Vec<_>) =
            requests.into_iter().map(|r| ((r.what, r.fine), r.message)).unzip();
        let Some((first, _)) = expected.first().copied() else { return Ok(Vec::new()) };
        let replies = self.send(messages)?;
        let collect = async {
            let mut replies = pin!(replies);
            let mut objects = Vec::new();
            let mut failed = None;
            let mut done = 0;
            while let Some(reply) = replies.next().await {
                match reply.payload {
                    NetlinkPayload::InnerMessage(object) => objects.push(object),
                    NetlinkPayload::Error(error) => {
                        let (what, fine) = expected.get(done).copied().unwrap_or((first, &[]));
                        done += 1;
                        let code = error.code.map_or(0, |c| -c.get());
                        if code != 0 && !fine.contains(&code) && failed.is_none() {
                            failed =
                                Some(NetError::Kernel { what, source: io::Error::from_raw_os_error(code) });
                        }
                    }
                    _ => return Err(NetError::Answer { what: first }),
                }
            }
            match failed {
                Some(error) => Err(error),
                None if done == expected.len() => Ok(objects),
                None => Err(NetError::Answer { what: first }),
            }
        };
        let late = |_| NetError::Kernel { what: first, source: io::ErrorKind::TimedOut.into() };
        tokio::time::timeout(DEADLINE, collect).await.map_err(late)?
    }

    /// All objects of a kind, narrowed by what the message says.
    pub(super) async fn dump(
        &self,
        what: &'static str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetError> {
        let mut objects = Vec::new();
        self.each(what, message, |object| objects.push(object)).await?;
        Ok(objects)
    }

    /// The same, one by one: there may be many.
    pub(super) async fn each(
        &self,
        what: &'static str,
        message: RouteNetlinkMessage,
        mut see: impl FnMut(RouteNetlinkMessage),
    ) -> Result<(), NetError> {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let replies = self.send(vec![message])?;
        let collect = async {
            let mut replies = pin!(replies);
            while let Some(reply) = replies.next().await {
                match reply.payload {
                    NetlinkPayload::InnerMessage(object) => see(object),
                    NetlinkPayload::Error(error) => {
                        return Err(NetError::Kernel { what, source: error.to_io() });
                    }
                    _ => return Err(NetError::Answer { what }),
                }
            }
            Ok(())
        };
        let late = |_| NetError::Kernel { what, source: io::ErrorKind::TimedOut.into() };
        tokio::time::timeout(DEADLINE, collect).await.map_err(late)?
    }

    fn send(
        &self,
        messages: Vec<NetlinkMessage<RouteNetlinkMessage>>,
    ) -> Result<impl Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + use<>, NetError> {
        self.handle
            .request_batch(messages, SocketAddr::new(0, 0))
            .map_err(|_| NetError::Socket(io::ErrorKind::BrokenPipe.into()))
    }
}
