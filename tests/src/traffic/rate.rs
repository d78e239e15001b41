//! Bytes a second as they stand on the wire: Ethernet header to payload, without preamble and checksum.
//!
//! The window begins with the first byte that arrives, so that a burst or a slow start counts in full.

use super::{first_in_line, tcp_info};
use crate::{Context, Error, Netns, Result, unmet};
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Where nothing arrives at all.
const NOTHING: Duration = Duration::from_secs(3);
const ETHERNET: u64 = 14;
/// A datagram of this payload fills an MTU of 1500 over IPv4.
const DATAGRAM: u64 = 1472;
/// Datagrams handed to the kernel at once (`UDP_SEGMENT`).
const BATCH: u64 = 16;
const SLICE: Duration = Duration::from_millis(100);

/// What arrived, Ethernet bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rate {
    pub bytes: u64,
    pub window: Duration,
    /// By [`SLICE`], the first one from the first byte on.
    pub slices: Vec<u64>,
    /// TCP segments sent again.
    pub retransmits: u32,
}

impl Rate {
    pub fn bits_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.window.as_secs_f64()
    }

    fn by_slice(&self) -> String {
        let gigabits = |bytes: &u64| format!("{:.2}", *bytes as f64 * 8.0 / SLICE.as_secs_f64() / 1e9);
        let slices: Vec<String> = self.slices.iter().map(gigabits).collect();
        format!("by 100 ms: {}; {} segments sent again", slices.join(" "), self.retransmits)
    }
}

/// A rate that is as it must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Within {
    pub bits_per_second: f64,
    /// Measurements that were too low before this one.
    pub again: u32,
}

const TRIES: u32 = 3;

/// Measures whether a limit of so many bits a second holds, within `tolerance` (a part of it). Too much is a fault at once.
/// Too little may be the fault of a busy machine that cannot send or receive so fast: it is measured again, and stands if
/// it stays so.
pub fn within(limit: f64, tolerance: f64, mut measure: impl FnMut() -> Result<Rate>) -> Result<Within> {
    let mut again = 0;
    loop {
        let rate = measure()?;
        let bits_per_second = rate.bits_per_second();
        let off = bits_per_second / limit - 1.0;
        if off.abs() <= tolerance {
            return Ok(Within { bits_per_second, again });
        }
        again += 1;
        if off > 0.0 || again == TRIES {
            let gigabits = bits_per_second / 1e9;
            return unmet(format!("{gigabits:.3} Gbit/s is {:+.1} % off ({})", off * 100.0, rate.by_slice()));
        }
    }
}

/// TCP as fast as it goes from `from` to `address` in `to`.
pub fn tcp(from: &Netns, to: &Netns, address: SocketAddr, window: Duration) -> Result<Rate> {
    let listener = to.run(|| TcpListener::bind(address).during(|| format!("binding {address}")))?;
    let mut client = from.run(|| {
        TcpStream::connect_timeout(&address, NOTHING).during(|| format!("connecting to {address}"))
    })?;
    let (mut server, _) = listener.accept()?;
    server.set_read_timeout(Some(NOTHING))?;
    client.set_write_timeout(Some(NOTHING))?;
    // With timestamps in its 12 bytes of options, which TCP_MAXSEG has subtracted already.
    let segment = u64::from(getsockopt(&client, sockopt::TcpMaxSeg)?);
    let headers = ETHERNET + if address.is_ipv4() { 20 } else { 40 } + 20 + 12;
    let on_wire = move |payload: u64| payload + payload.div_ceil(segment) * headers;
    thread::scope(|scope| {
        let sender = scope.spawn(move || {
            let block = vec![0x5a; 128 * 1024];
            first_in_line();
            // Ends when the receiver, having seen enough, closes.
            while client.write_all(&block).is_ok() {}
            Ok::<_, Error>(tcp_info(&client)?.tcpi_total_retrans)
        });
        let receiver = scope.spawn(move || {
            first_in_line();
            let mut buffer = vec![0; 512 * 1024];
            measure(window, || server.read(&mut buffer).map(|n| n as u64))
        });
        let measured = receiver.join().unwrap_or_else(|p| std::panic::resume_unwind(p))?;
        let retransmits = sender.join().unwrap_or_else(|p| std::panic::resume_unwind(p))?;
        Ok(Rate { retransmits, ..total(&measured, window, on_wire) })
    })
}

/// UDP at `offered` bits a second (payload), which must be more than the limit under test.
pub fn udp(from: &Netns, to: &Netns, address: SocketAddr, window: Duration, offered: u64) -> Result<Rate> {
    let inbox = to.run(|| UdpSocket::bind(address).during(|| format!("binding {address}")))?;
    setsockopt(&inbox, sockopt::RcvBufForce, &(16 << 20))?;
    setsockopt(&inbox, sockopt::UdpGroSegment, &true)?;
    inbox.set_read_timeout(Some(NOTHING))?;
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let outbox = from.run(|| Ok(UdpSocket::bind(any)?))?;
    outbox.connect(address).during(|| format!("a way to {address}"))?;
    let datagram = if address.is_ipv4() { DATAGRAM } else { DATAGRAM - 20 };
    setsockopt(&outbox, sockopt::UdpGsoSegment, &(datagram as i32))?;
    let headers = 1500 - datagram + ETHERNET;
    let on_wire = move |payload: u64| payload + payload.div_ceil(datagram) * headers;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let sender = scope.spawn(|| offer(&outbox, datagram * BATCH, offered, &stop));
        let receiver = scope.spawn(|| {
            first_in_line();
            let mut buffer = vec![0; 65_536];
            measure(window, || inbox.recv(&mut buffer).map(|n| n as u64))
        });
        let measured = receiver.join().unwrap_or_else(|p| std::panic::resume_unwind(p));
        stop.store(true, Ordering::Release);
        sender.join().unwrap_or_else(|p| std::panic::resume_unwind(p))?;
        measured.map(|slices| total(&slices, window, on_wire))
    })
}

/// Sends batches at an even pace; a batch that the kernel drops is not sent again.
fn offer(socket: &UdpSocket, batch: u64, bits_per_second: u64, stop: &AtomicBool) -> Result<()> {
    first_in_line();
    let block = vec![0x5a; batch as usize];
    let start = Instant::now();
    let mut offered: u64 = 0;
    while !stop.load(Ordering::Acquire) {
        match socket.send(&block) {
            Ok(_) => {}
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {}
            Err(e) => return Err(e).during(|| "offering datagrams".into()),
        }
        offered += batch * 8;
        let due = start + Duration::from_nanos(offered.saturating_mul(1_000_000_000) / bits_per_second);
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

/// Payload bytes by slice, over `window` from the first byte.
fn measure(window: Duration, mut receive: impl FnMut() -> io::Result<u64>) -> Result<Vec<u64>> {
    let first = receive().during(|| "waiting for the first byte".into())?;
    let start = Instant::now();
    let count = usize::try_from(window.as_nanos() / SLICE.as_nanos()).unwrap_or(1);
    let mut slices = vec![0; count];
    slices[0] = first;
    loop {
        let bytes = receive().during(|| "receiving".into())?;
        let slice = (start.elapsed().as_nanos() / SLICE.as_nanos()) as usize;
        match slices.get_mut(slice) {
            Some(slice) if bytes > 0 => *slice += bytes,
            Some(_) => return unmet("the sender closed before the window was over"),
            None => return Ok(slices),
        }
    }
}

fn total(payload: &[u64], window: Duration, on_wire: impl Fn(u64) -> u64) -> Rate {
    Rate {
        bytes: on_wire(payload.iter().sum()),
        window,
        slices: payload.iter().map(|p| on_wire(*p)).collect(),
        retransmits: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_segment_counts_1514_bytes() {
        let rate = total(&[1448, 1448], Duration::from_secs(1), |p| p + p.div_ceil(1448) * 66);
        assert_eq!((rate.bytes, rate.slices), (2 * 1514, vec![1514, 1514]));
        assert_eq!(rate.window, Duration::from_secs(1));
    }

    fn measured(bits: &[u64]) -> (Result<Within>, u32) {
        let mut calls = 0;
        let found = within(1e9, 0.05, || {
            let bytes = bits[calls as usize] / 8;
            calls += 1;
            Ok(Rate { bytes, window: Duration::from_secs(1), slices: vec![bytes], retransmits: 0 })
        });
        (found, calls)
    }

    #[test]
    fn a_rate_that_is_too_high_is_a_fault_at_once() {
        let (found, calls) = measured(&[1_060_000_000, 1_000_000_000]);
        assert!(found.is_err());
        assert_eq!(calls, 1);
    }

    #[test]
    fn a_rate_that_is_too_low_is_a_fault_when_it_stays_so() {
        let (found, _) = measured(&[900_000_000, 990_000_000]);
        assert_eq!(found.unwrap(), Within { bits_per_second: 990e6, again: 1 });
        let (found, calls) = measured(&[900_000_000; 3]);
        assert!(found.is_err());
        assert_eq!(calls, 3);
    }
}
