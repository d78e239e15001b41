//! One blocking request over the daemon's unix socket (HTTP/1.0: the reply ends with the connection).
//!
//! Every step, connecting included, ends at the deadline: a daemon that is stopped or stuck must not hold its caller.
//! Never retries: the caller knows whether its request may be asked twice.

use crate::messages::ErrorReply;
use nix::{
    errno::Errno,
    sys::{
        socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, sockopt},
        time::TimeVal,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io::{self, Read, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    path::Path,
    time::{Duration, Instant},
};

/// A reply larger than this is not one of ours.
const REPLY_LIMIT: usize = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens: the daemon is down.
    #[error("cannot reach the daemon at {path}: {source}")]
    Connect { path: String, source: io::Error },
    #[error("the daemon did not answer within {} s", .0.as_secs_f32())]
    Deadline(Duration),
    /// Also a reply that is cut off: the daemon died over it. The request may have been carried out.
    #[error("the connection to the daemon broke: {0}")]
    Io(#[from] io::Error),
    /// It answered, but not in our language.
    #[error("the daemon's answer cannot be read: {0}")]
    Reply(String),
    /// The daemon answered, and refused.
    #[error(transparent)]
    Refused(#[from] ErrorReply),
}

/// Sends `body` (`None`: a GET) and reads the reply, all within `deadline`.
pub fn request<B: Serialize, R: DeserializeOwned>(
    socket: &Path,
    path: &str,
    body: Option<&B>,
    deadline: Duration,
) -> Result<R, ClientError> {
    let clock = Clock { deadline, end: Instant::now() + deadline };
    let mut stream = connect(socket, &clock)?;
    write(&mut stream, &encode(path, body)?, &clock)?;
    decode(&read(&mut stream, &clock)?)
}

struct Clock {
    deadline: Duration,
    end: Instant,
}

impl Clock {
    /// What is left; never zero, which the kernel would take for "no limit".
    fn left(&self) -> Result<Duration, ClientError> {
        match self.end.saturating_duration_since(Instant::now()) {
            left if left < Duration::from_micros(1) => Err(ClientError::Deadline(self.deadline)),
            left => Ok(left),
        }
    }

    fn error(&self, e: io::Error) -> ClientError {
        match e.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::Deadline(self.deadline),
            _ => ClientError::Io(e),
        }
    }
}

/// Not `UnixStream::connect`: that waits without end while the listener's backlog is full. The send timeout of a
/// unix socket bounds its connect too (unix(7)); it then fails with EAGAIN.
fn connect(path: &Path, clock: &Clock) -> Result<UnixStream, ClientError> {
    let failed =
        |e: Errno| ClientError::Connect { path: path.display().to_string(), source: io::Error::from(e) };
    let address = UnixAddr::new(path).map_err(failed)?;
    let fd = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .map_err(failed)?;
    loop {
        let left = clock.left()?;
        let timeout = TimeVal::new(left.as_secs() as _, left.subsec_micros() as _);
        socket::setsockopt(&fd, sockopt::SendTimeout, &timeout).map_err(failed)?;
        match socket::connect(fd.as_raw_fd(), &address) {
            Ok(()) => return Ok(fd.into()),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Err(ClientError::Deadline(clock.deadline)),
            Err(e) => return Err(failed(e)),
        }
    }
}

fn encode<B: Serialize>(path: &str, body: Option<&B>) -> Result<Vec<u8>, ClientError> {
    let (method, body) = match body {
        Some(b) => ("POST", serde_json::to_vec(b).map_err(io::Error::from)?),
        None => ("GET", Vec::new()),
    };
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: bulkheadd\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    Ok([head.into_bytes(), body].concat())
}

fn write(stream: &mut UnixStream, mut bytes: &[u8], clock: &Clock) -> Result<(), ClientError> {
    while !bytes.is_empty() {
        stream.set_write_timeout(Some(clock.left()?))?;
        match stream.write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(clock.error(e)),
        }
    }
    Ok(())
}

fn read(stream: &mut UnixStream, clock: &Clock) -> Result<Vec<u8>, ClientError> {
    let mut raw = Vec::new();
    let mut chunk = [0u8; 16 * 1024];
    loop {
        stream.set_read_timeout(Some(clock.left()?))?;
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(raw),
            Ok(n) => raw.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(clock.error(e)),
        }
        if raw.len() > REPLY_LIMIT {
            return Err(ClientError::Reply(format!("longer than {REPLY_LIMIT} bytes")));
        }
    }
}

fn decode<R: DeserializeOwned>(raw: &[u8]) -> Result<R, ClientError> {
    let (status, body) = split(raw)?;
    if status == 200 {
        return serde_json::from_slice(body).map_err(|e| ClientError::Reply(e.to_string()));
    }
    match serde_json::from_slice::<ErrorReply>(body) {
        Ok(refused) => Err(refused.into()),
        Err(_) => Err(ClientError::Reply(format!("status {status}: {}", excerpt(body)))),
    }
}

/// Status and body. A reply shorter than it says is a broken connection, not a bad answer.
fn split(raw: &[u8]) -> Result<(u16, &[u8]), ClientError> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let head = match response.parse(raw) {
        Ok(httparse::Status::Complete(n)) => n,
        Ok(httparse::Status::Partial) => return Err(cut_off()),
        Err(e) => return Err(ClientError::Reply(format!("{e}: {}", excerpt(raw)))),
    };
    let status = response.code.unwrap_or_default();
    let body = &raw[head..];
    let Some(header) = response.headers.iter().find(|h| h.name.eq_ignore_ascii_case("content-length")) else {
        return Ok((status, body));
    };
    let length: usize = std::str::from_utf8(header.value)
        .ok()
        .and_then(|v| v.trim().parse().ok())
        .ok_or_else(|| ClientError::Reply(format!("content-length {}", excerpt(header.value))))?;
    body.get(..length).map(|body| (status, body)).ok_or_else(cut_off)
}

fn cut_off() -> ClientError {
    ClientError::Io(io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "it was closed before the answer was complete",
    ))
}

/// Enough of what was not understood to recognise who answered.
fn excerpt(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).trim().to_string()
}
