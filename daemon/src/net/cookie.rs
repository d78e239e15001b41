//! The cookie of a network namespace (`SO_NETNS_COOKIE`, Linux 5.14).

use super::NetError;
use nix::sched::{CloneFlags, setns};
use std::{fs::File, io, net::UdpSocket, os::fd::AsRawFd};

/// Only a socket can be asked, so a thread goes there, makes one and ends.
pub async fn of(netns: File) -> Result<u64, NetError> {
    let (tx, rx) = tokio::sync::oneshot::channel();
    let ask = move || -> io::Result<u64> {
        setns(netns, CloneFlags::CLONE_NEWNET)?;
        let socket = UdpSocket::bind(("::", 0)).or_else(|_| UdpSocket::bind(("0.0.0.0", 0)))?;
        let mut cookie = 0u64;
        let mut length = size_of::<u64>() as libc::socklen_t;
        // SAFETY: as many bytes as `length` says, and a descriptor that lives.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_NETNS_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut length,
            )
        };
        if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
    };
    std::thread::Builder::new()
        .name("cookie".into())
        .spawn(move || tx.send(ask()).is_ok())
        .map_err(NetError::Socket)?;
    let answer = rx.await.map_err(|_| NetError::Socket(io::ErrorKind::BrokenPipe.into()))?;
    answer.map_err(|source| NetError::Kernel { what: "read the cookie of the pod's namespace", source })
}
