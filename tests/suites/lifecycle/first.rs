//! The very first packet of a pod.

use crate::support::*;
use bulkhead_lab::{Context, Lab, Pod, Result};
use std::{
    hint,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

pub const CASES: &[Case] =
    &[("what a pod sends as soon as it is wired is not lost, however busy the machine is", not_lost)];

const PODS: usize = 100;
const PATIENCE: Duration = Duration::from_secs(10);

/// However a scope is left: whoever spins in it ends.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The kernel opens an interface for packets in a work item of its own, which has to wait for a processor.
fn not_lost(lab: &mut Lab) -> Result<()> {
    let server = index(lab, "shop/cart-0");
    add(lab, server)?;
    let to = SocketAddr::new(lab.pods[server].v4.into(), 7000);
    let listener = lab.pods[server].netns.run(|| TcpListener::bind(to).during(|| format!("binding {to}")))?;
    let mut pod = Pod::create(0, "shop", "first")?;
    let stop = AtomicBool::new(false);
    let lost = thread::scope(|scope| {
        let _end = End(&stop);
        for _ in 0..thread::available_parallelism()?.get() {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    hint::spin_loop();
                }
            });
        }
        (0..PODS)
            .map(|_| {
                pod.add(&lab.nodes[0])?;
                let client = pod.netns.run(|| Ok(TcpStream::connect_timeout(&to, PATIENCE)?))?;
                listener.accept()?;
                let lost = sent_again(&client)?;
                pod.del(&lab.nodes[0])?;
                Ok(lost)
            })
            .sum::<Result<u32>>()
    })?;
    require(lost == 0, &format!("of {PODS} pods' first packets {lost} were sent again"))
}

/// Segments, those of the handshake included.
fn sent_again(stream: &TcpStream) -> Result<u32> {
    // SAFETY: all-zero is a valid `tcp_info` (integers only).
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `info`, which is that large.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(info.tcpi_total_retrans) } else { Err(std::io::Error::last_os_error().into()) }
}
