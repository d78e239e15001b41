//! The client against every way in which a daemon can fail to answer.

#![allow(clippy::unwrap_used)]

mod responder;

use bulkhead_api::{
    client::{ClientError, request},
    messages::{AttachmentId, Detach, ErrorReply},
};
use nix::sys::socket::{Backlog, listen};
use responder::{Answer, Responder};
use serde_json::{Value, json};
use std::{os::unix::net::UnixListener, os::unix::net::UnixStream, path::Path, time::Duration};

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(50);

fn get(socket: &Path, deadline: Duration) -> Result<Value, ClientError> {
    request::<(), Value>(socket, "/v1/status", None, deadline)
}

fn answer(answer: Answer) -> Result<Value, ClientError> {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Responder::always(dir.path(), answer);
    get(daemon.socket(), LONG)
}

#[test]
fn a_body_is_posted_and_no_body_is_a_get() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Responder::always(dir.path(), Answer::Json(200, json!({"a": 1})));
    let detach = Detach { id: AttachmentId { container_id: "c".into(), ifname: "eth0".into() }, netns: None };
    let reply: Value = request(daemon.socket(), "/v1/cni/del", Some(&detach), LONG).unwrap();
    assert_eq!(reply, json!({"a": 1}));
    assert_eq!(get(daemon.socket(), LONG).unwrap(), json!({"a": 1}));
    assert_eq!(
        daemon.asked(),
        [
            ("POST /v1/cni/del".to_string(), json!({"containerId": "c", "ifname": "eth0"})),
            ("GET /v1/status".to_string(), Value::Null),
        ]
    );
}

#[test]
fn nobody_listening_is_told_apart_from_a_broken_connection() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("no.sock");
    assert!(matches!(get(&socket, LONG), Err(ClientError::Connect { .. })));
    drop(UnixListener::bind(&socket).unwrap());
    assert!(
        matches!(get(&socket, LONG), Err(ClientError::Connect { .. })),
        "a socket file without its daemon"
    );
    let too_long = dir.path().join("x".repeat(200));
    assert!(matches!(get(&too_long, LONG), Err(ClientError::Connect { .. })));
}

#[test]
fn a_daemon_that_dies_over_its_answer_is_a_broken_connection() {
    for cut in ["", "HTTP/1.0 200 O", "HTTP/1.0 200 OK\r\ncontent-length: 10\r\n\r\n{\"a\""] {
        let got = answer(Answer::Raw(cut.into()));
        assert!(matches!(got, Err(ClientError::Io(_))), "{cut:?}: {got:?}");
    }
}

#[test]
fn what_is_not_an_answer_of_ours_is_named() {
    let bad_length = "HTTP/1.0 200 OK\r\ncontent-length: -1\r\n\r\n{}";
    for raw in ["SSH-2.0-OpenSSH\r\n", "HTTP/1.0 200 OK\r\n\r\nnot json", bad_length] {
        let got = answer(Answer::Raw(raw.into()));
        assert!(matches!(got, Err(ClientError::Reply(_))), "{raw:?}: {got:?}");
    }
    let got = answer(Answer::Raw("HTTP/1.0 404 Not Found\r\n\r\nno such page".into()));
    assert_eq!(got.unwrap_err().to_string(), "the daemon's answer cannot be read: status 404: no such page");
}

#[test]
fn a_refusal_arrives_whole() {
    let reply = ErrorReply { code: 100, msg: "no free address".into(), details: "enlarge it".into() };
    match answer(Answer::Json(503, json!(reply))) {
        Err(ClientError::Refused(got)) => assert_eq!(got, reply),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_silent_daemon_is_left_at_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Responder::always(dir.path(), Answer::Silence);
    assert!(matches!(get(daemon.socket(), SHORT), Err(ClientError::Deadline(SHORT))));
    assert!(matches!(get(daemon.socket(), Duration::ZERO), Err(ClientError::Deadline(_))));
}

#[test]
fn a_full_backlog_is_left_at_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("full.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    listen(&listener, Backlog::new(0).unwrap()).unwrap();
    // A backlog of n holds n + 1.
    let _waiting = UnixStream::connect(&socket).unwrap();
    assert!(matches!(get(&socket, SHORT), Err(ClientError::Deadline(SHORT))));
}

#[test]
fn a_peer_that_does_not_read_is_left_at_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("deaf.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let large = "x".repeat(8 << 20);
    let got = request::<_, Value>(&socket, "/v1/cni/gc", Some(&large), SHORT);
    assert!(matches!(got, Err(ClientError::Deadline(SHORT))), "{got:?}");
}
