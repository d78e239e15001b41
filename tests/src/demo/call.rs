//! One call, as a consumer makes it: connect, ask, be answered.

use crate::{Context, Netns, Result, unmet};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

const DEADLINE: Duration = Duration::from_secs(3);
const REQUEST: &[u8] = b"who am I?";

#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    /// The caller, as the provider sees it.
    pub seen_as: SocketAddr,
    /// From connect to the last byte of the answer.
    pub took: Duration,
}

/// A provider listens at `address` in `to`; a consumer in `from` calls it.
pub(super) fn call(from: &Netns, to: &Netns, address: SocketAddr) -> Result<Call> {
    let listener = to.run(|| TcpListener::bind(address).during(|| format!("binding {address}")))?;
    let start = Instant::now();
    let mut consumer = from.run(|| {
        TcpStream::connect_timeout(&address, DEADLINE).during(|| format!("connecting to {address}"))
    })?;
    let (mut provider, seen_as) = listener.accept()?;
    for end in [&consumer, &provider] {
        end.set_read_timeout(Some(DEADLINE))?;
    }
    let answer = thread::scope(|scope| {
        let provider = scope.spawn(move || {
            let mut request = [0; REQUEST.len()];
            provider.read_exact(&mut request)?;
            provider.write_all(seen_as.to_string().as_bytes())
        });
        consumer.write_all(REQUEST)?;
        let mut answer = String::new();
        consumer.read_to_string(&mut answer)?;
        provider.join().unwrap_or_else(|p| std::panic::resume_unwind(p))?;
        Ok::<_, std::io::Error>(answer)
    })
    .during(|| format!("calling {address}"))?;
    let took = start.elapsed();
    if answer != seen_as.to_string() {
        return unmet(format!("{address} answered `{answer}` to {seen_as}"));
    }
    Ok(Call { seen_as, took })
}
