//! One blocking request over the daemon's unix socket (HTTP/1.0: the reply ends with the connection).

use crate::messages::ErrorReply;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

/// A reply larger than this is not one of ours.
const REPLY_LIMIT: u64 = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens: the daemon is down.
    #[error("cannot reach the daemon at {path}: {source}")]
    Connect { path: String, source: io::Error },
    #[error("the daemon did not answer within {} s", .0.as_secs())]
    Deadline(Duration),
    #[error("the connection to the daemon broke: {0}")]
    Io(#[from] io::Error),
    #[error("the daemon's answer cannot be read: {0}")]
    Reply(String),
    /// The daemon answered, and refused.
    #[error(transparent)]
    Refused(#[from] ErrorReply),
}

/// Sends `body` (`null`: none, as GET) and reads the reply; both within `deadline`.
pub fn request<B: Serialize, R: DeserializeOwned>(
    socket: &Path,
    path: &str,
    body: Option<&B>,
    deadline: Duration,
) -> Result<R, ClientError> {
    let end = Instant::now() + deadline;
    let mut stream = UnixStream::connect(socket)
        .map_err(|source| ClientError::Connect { path: socket.display().to_string(), source })?;
    stream.set_write_timeout(Some(deadline))?;
    stream.write_all(&encode(path, body)?)?;
    let raw = read_until(&mut stream, end, deadline)?;
    decode(&raw)
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

fn read_until(stream: &mut UnixStream, end: Instant, deadline: Duration) -> Result<Vec<u8>, ClientError> {
    let mut raw = Vec::new();
    let mut chunk = [0u8; 16 * 1024];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ClientError::Deadline(deadline));
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(raw),
            Ok(n) => raw.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Err(ClientError::Deadline(deadline));
            }
            Err(e) => return Err(e.into()),
        }
        if raw.len() as u64 > REPLY_LIMIT {
            return Err(ClientError::Reply(format!("longer than {REPLY_LIMIT} bytes")));
        }
    }
}

fn decode<R: DeserializeOwned>(raw: &[u8]) -> Result<R, ClientError> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let head = match response.parse(raw) {
        Ok(httparse::Status::Complete(n)) => n,
        Ok(httparse::Status::Partial) => return Err(ClientError::Reply("cut off within its head".into())),
        Err(e) => return Err(ClientError::Reply(e.to_string())),
    };
    let body = &raw[head..];
    if response.code == Some(200) {
        return serde_json::from_slice(body).map_err(|e| ClientError::Reply(e.to_string()));
    }
    match serde_json::from_slice::<ErrorReply>(body) {
        Ok(refused) => Err(refused.into()),
        Err(_) => Err(ClientError::Reply(format!(
            "status {}: {}",
            response.code.unwrap_or_default(),
            String::from_utf8_lossy(body)
        ))),
    }
}
