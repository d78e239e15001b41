//! The way from the machine to the API server of a lab: a listening socket of the machine, served inside.
//!
//! A socket stays in the network namespace that it was made in. So the outer process makes it, on the loopback address, and
//! the lab's init answers: nothing is put on any interface.

use crate::{Context, Netns, Result, unmet};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::{
    env, io,
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    thread,
};

/// Descriptor of the listening socket, for the inner process.
const DOOR: &str = "BULKHEAD_CLUSTER_DOOR";

/// In the outer process, before it enters the lab: the socket must live until then.
pub fn open() -> Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).during(|| "listening on 127.0.0.1".into())?;
    fcntl(&listener, FcntlArg::F_SETFD(FdFlag::empty()))?;
    // SAFETY: no other thread runs yet.
    unsafe { env::set_var(DOOR, listener.as_raw_fd().to_string()) };
    Ok(listener)
}

/// In the inner process: the socket that the outer one has opened.
pub fn inherited() -> Result<TcpListener> {
    let Some(fd) = env::var(DOOR).ok().and_then(|fd| fd.parse().ok()) else {
        return unmet("the outer process has opened no door");
    };
    // SAFETY: the outer process made this descriptor for us, and nobody else in this process knows it.
    let listener = TcpListener::from(unsafe { OwnedFd::from_raw_fd(fd) });
    fcntl(&listener, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(listener)
}

/// Hands every connection on to `to` in this namespace, for as long as the process lives.
pub fn serve(listener: TcpListener, netns: &'static Netns, to: SocketAddr) {
    thread::spawn(move || {
        for outside in listener.incoming().flatten() {
            thread::spawn(move || {
                if let Ok(inside) = netns.run(|| Ok(TcpStream::connect(to)?)) {
                    let _ = pass(&outside, &inside);
                }
            });
        }
    });
}

fn pass(a: &TcpStream, b: &TcpStream) -> io::Result<()> {
    let one_way = |mut from: TcpStream, mut to: TcpStream| {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    };
    let (from, to) = (a.try_clone()?, b.try_clone()?);
    let there = thread::spawn(move || one_way(from, to));
    one_way(b.try_clone()?, a.try_clone()?);
    let _ = there.join();
    Ok(())
}
