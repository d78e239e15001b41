//! A daemon's socket for tests: answers each request by a script and remembers what it was asked.
//!
//! It speaks the wire format and nothing else: a green run says that a client says the right things and bears every
//! answer, not that the daemon would give that answer. The lab suites run the real one.

use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

/// How a request is answered.
#[allow(dead_code, reason = "each test binary uses some of them")]
#[derive(Clone, Debug)]
pub enum Answer {
    Json(u16, Value),
    /// These bytes, then the end of the connection.
    Raw(Vec<u8>),
    /// Nothing, with the connection kept open until the responder goes.
    Silence,
}

/// `POST /v1/cni/add` and its body; `Null` for none.
pub type Asked = (String, Value);

pub struct Responder {
    socket: PathBuf,
    asked: Arc<Mutex<Vec<Asked>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Responder {
    /// Gives every request the same answer.
    pub fn always(directory: &Path, answer: Answer) -> Self {
        let socket = directory.join("bulkheadd.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (asked, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let (asked, stop) = (asked.clone(), stop.clone());
            move || serve(&listener, &answer, &asked, &stop)
        });
        Self { socket, asked, stop, thread: Some(thread) }
    }

    #[allow(dead_code, reason = "each test binary uses some of it")]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    #[allow(dead_code, reason = "each test binary uses some of it")]
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the accept. Where the directory went first, the thread is left to the end of the process.
        if UnixStream::connect(&self.socket).is_ok() {
            self.thread.take().map(JoinHandle::join);
        }
    }
}

fn serve(listener: &UnixListener, answer: &Answer, asked: &Mutex<Vec<Asked>>, stop: &AtomicBool) {
    let mut silent = Vec::new();
    for stream in listener.incoming() {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let mut stream = stream.unwrap();
        let request = read_request(&stream);
        asked.lock().unwrap().push(request);
        match answer {
            Answer::Json(status, body) => {
                let body = body.to_string();
                let length = body.len();
                write!(stream, "HTTP/1.0 {status} X\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
            }
            Answer::Raw(bytes) => stream.write_all(bytes).unwrap(),
            Answer::Silence => silent.push(stream),
        }
    }
}

fn read_request(stream: &UnixStream) -> Asked {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let request = line.trim_end().trim_end_matches(" HTTP/1.0").to_string();
    let mut length = 0;
    loop {
        line.clear();
        reader.read_line(&mut line).unwrap();
        match line.trim_end().split_once(": ") {
            Some(("Content-Length", value)) => length = value.parse().unwrap(),
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    (request, if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() })
}
