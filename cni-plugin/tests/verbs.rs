//! The program as a runtime runs it: environment and configuration in, result or error out, against a socket that
//! answers by a script. The lab suites run it against the real daemon.

#![allow(clippy::unwrap_used)]

#[path = "../../api/tests/responder/mod.rs"]
mod responder;

use responder::{Answer, Asked, Responder};
use serde_json::{Value, json};
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use tempfile::TempDir;

/// A node's folder with its socket, and perhaps a daemon behind it.
struct Node {
    // Goes before the folder that its socket is in.
    daemon: Option<Responder>,
    dir: TempDir,
}

impl Node {
    fn down() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), daemon: None }
    }

    fn answering(answer: Answer) -> Self {
        let mut node = Self::down();
        node.come_up(answer);
        node
    }

    fn come_up(&mut self, answer: Answer) {
        self.daemon = Some(Responder::always(self.dir.path(), answer));
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("bulkheadd.sock")
    }

    fn asked(&self) -> Vec<Asked> {
        self.daemon.as_ref().map(Responder::asked).unwrap_or_default()
    }

    /// A configuration for this node, with these keys over it.
    fn config(&self, keys: Value) -> Value {
        let mut config = json!({
            "cniVersion": "1.1.0",
            "name": "bulkhead",
            "type": "bulkhead-cni",
            "socket": self.socket(),
            "stateDir": self.dir.path().join("state"),
            "deadlineSeconds": 1,
        });
        config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        config
    }

    fn run(&self, command: &str, keys: Value) -> Outcome {
        run(&environment(command), &self.config(keys).to_string())
    }

    /// Name and content of each queued DEL.
    fn queued(&self) -> Vec<(String, Value)> {
        let Ok(entries) = fs::read_dir(self.dir.path().join("state/pending-del")) else { return Vec::new() };
        let read = |path: &Path| serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        entries.map(|e| e.unwrap()).map(|e| (e.file_name().into_string().unwrap(), read(&e.path()))).collect()
    }
}

#[derive(Debug, PartialEq)]
struct Outcome {
    status: i32,
    output: Value,
}

impl Outcome {
    fn silent_success() -> Self {
        Self { status: 0, output: Value::Null }
    }

    #[track_caller]
    fn assert_error(&self, code: u32, msg: &str) {
        assert_eq!((self.status, &self.output["code"], &self.output["msg"]), (1, &json!(code), &json!(msg)));
        let keys: Vec<_> = self.output.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["cniVersion", "code", "details", "msg"]);
        assert_ne!(self.output["details"], json!(""), "an error says what to do");
    }
}

fn environment(command: &str) -> Vec<(&str, &str)> {
    vec![
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/var/run/netns/a"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_UID=af-1"),
        ("CNI_PATH", "/opt/cni/bin"),
    ]
}

fn run(environment: &[(&str, &str)], input: &str) -> Outcome {
    let mut child = Command::new(env!("CARGO_BIN_EXE_bulkhead-cni"))
        .env_clear()
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // A call that is refused by its environment ends without reading.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let done = child.wait_with_output().unwrap();
    let output = match done.stdout.as_slice() {
        [] => Value::Null,
        json => serde_json::from_slice(json).unwrap(),
    };
    Outcome { status: done.status.code().unwrap(), output }
}

fn attachment() -> Value {
    json!({
        "hostInterface": {"name": "bh0a1b2c3d", "mac": "ee:ee:ee:ee:ee:ee", "mtu": 1500},
        "podInterface": {"name": "eth0", "mac": "0a:58:0a:41:00:03", "mtu": 1500},
        "addresses": ["10.65.0.3/32", "fd00:65::3/128"],
        "routes": [{"dst": "0.0.0.0/0", "gateway": "169.254.1.1"}, {"dst": "::/0", "gateway": "fe80::1"}],
    })
}

fn done() -> Answer {
    Answer::Json(200, json!({}))
}

fn refusal() -> Answer {
    Answer::Json(409, json!({"code": 101, "msg": "bh0a1b2c3d is missing", "details": "delete the pod"}))
}

/// No answer in three ways: nobody there, a daemon that hangs, one that dies over the request.
fn unanswering() -> [Node; 3] {
    [Node::down(), Node::answering(Answer::Silence), Node::answering(Answer::Raw(vec![]))]
}

fn previous() -> Value {
    json!({"prevResult": {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "bh0a1b2c3d"}, {"name": "eth0", "sandbox": "/var/run/netns/a"}],
        "ips": [{"address": "10.65.0.3/32", "interface": 1}],
    }})
}

fn valid() -> Value {
    json!({"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]})
}

#[test]
fn add_asks_for_the_pod_and_its_bandwidth() {
    let node = Node::answering(Answer::Json(200, attachment()));
    node.run("ADD", json!({"runtimeConfig": {"bandwidth": {"egressRate": 1000, "egressBurst": 10}}}));
    let body = json!({
        "containerId": "c1",
        "ifname": "eth0",
        "netns": "/var/run/netns/a",
        "pod": {"namespace": "shop", "name": "web-1", "uid": "af-1"},
        "bandwidth": {"ingressRate": 0, "ingressBurst": 0, "egressRate": 1000, "egressBurst": 10},
    });
    assert_eq!(node.asked(), [("POST /v1/cni/add".to_string(), body)]);
}

#[test]
fn add_answers_in_the_version_of_the_caller() {
    let node = Node::answering(Answer::Json(200, attachment()));
    let add = |version: &str| {
        node.run(
            "ADD",
            json!({"cniVersion": version, "dns": {"nameservers": ["10.96.0.10"]}, "prevResult": null}),
        )
    };
    for version in ["0.3.1", "0.4.0"] {
        let output = json!({
            "cniVersion": version,
            "interfaces": [
                {"name": "bh0a1b2c3d", "mac": "ee:ee:ee:ee:ee:ee"},
                {"name": "eth0", "mac": "0a:58:0a:41:00:03", "sandbox": "/var/run/netns/a"},
            ],
            "ips": [
                {"version": "4", "interface": 1, "address": "10.65.0.3/32", "gateway": "169.254.1.1"},
                {"version": "6", "interface": 1, "address": "fd00:65::3/128", "gateway": "fe80::1"},
            ],
            "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "::/0", "gw": "fe80::1"}],
            "dns": {"nameservers": ["10.96.0.10"]},
        });
        assert_eq!(add(version), Outcome { status: 0, output });
    }
    let output = json!({
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": "bh0a1b2c3d", "mac": "ee:ee:ee:ee:ee:ee"},
            {"name": "eth0", "mac": "0a:58:0a:41:00:03", "sandbox": "/var/run/netns/a"},
        ],
        "ips": [
            {"interface": 1, "address": "10.65.0.3/32", "gateway": "169.254.1.1"},
            {"interface": 1, "address": "fd00:65::3/128", "gateway": "fe80::1"},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "::/0", "gw": "fe80::1"}],
        "dns": {"nameservers": ["10.96.0.10"]},
    });
    assert_eq!(add("1.0.0"), Outcome { status: 0, output });
    let output = json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "bh0a1b2c3d", "mac": "ee:ee:ee:ee:ee:ee", "mtu": 1500},
            {"name": "eth0", "mac": "0a:58:0a:41:00:03", "mtu": 1500, "sandbox": "/var/run/netns/a"},
        ],
        "ips": [
            {"interface": 1, "address": "10.65.0.3/32", "gateway": "169.254.1.1"},
            {"interface": 1, "address": "fd00:65::3/128", "gateway": "fe80::1"},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "::/0", "gw": "fe80::1"}],
        "dns": {"nameservers": ["10.96.0.10"]},
    });
    assert_eq!(add("1.1.0"), Outcome { status: 0, output });
}

#[test]
fn without_an_answer_every_verb_but_del_fails_with_its_code() {
    for node in unanswering() {
        let later = "bulkheadd does not answer, try again later";
        node.run("ADD", json!({})).assert_error(11, later);
        node.run("CHECK", previous()).assert_error(11, later);
        node.run("GC", valid()).assert_error(11, later);
        node.run("STATUS", json!({})).assert_error(50, "bulkheadd does not answer, no pod can be added");
    }
}

#[test]
fn without_an_answer_del_is_queued_and_succeeds() {
    for node in unanswering() {
        assert_eq!(node.run("DEL", json!({})), Outcome::silent_success());
        let queued = json!({"containerId": "c1", "ifname": "eth0", "netns": "/var/run/netns/a"});
        assert_eq!(node.queued(), [("c1-eth0.json".to_string(), queued)]);
    }
}

#[test]
fn a_del_that_cannot_be_queued_fails() {
    let node = Node::down();
    fs::write(node.dir.path().join("state"), "a file where the directory should be").unwrap();
    node.run("DEL", json!({}))
        .assert_error(5, "bulkheadd does not answer, and the DEL cannot be kept for it either");
}

#[test]
fn a_queued_del_is_settled_before_the_same_name_is_added_again() {
    let mut node = Node::down();
    node.run("DEL", json!({}));
    node.run("ADD", json!({})).assert_error(11, "bulkheadd does not answer, try again later");
    assert_eq!(node.queued().len(), 1, "it still waits");
    node.come_up(Answer::Json(200, attachment()));
    assert_eq!(node.run("ADD", json!({})).status, 0);
    let paths: Vec<_> = node.asked().into_iter().map(|(path, _)| path).collect();
    assert_eq!(paths, ["POST /v1/cni/del", "POST /v1/cni/add"]);
    assert_eq!(node.queued(), []);
}

#[test]
fn a_del_that_the_daemon_does_is_not_queued_any_more() {
    let mut node = Node::down();
    node.run("DEL", json!({}));
    node.come_up(done());
    assert_eq!(node.run("DEL", json!({})), Outcome::silent_success());
    let body = json!({"containerId": "c1", "ifname": "eth0", "netns": "/var/run/netns/a"});
    assert_eq!(node.asked(), [("POST /v1/cni/del".to_string(), body)]);
    assert_eq!(node.queued(), []);
}

#[test]
fn del_needs_no_namespace() {
    let node = Node::answering(done());
    let mut environment = environment("DEL");
    environment.retain(|(name, _)| *name != "CNI_NETNS");
    assert_eq!(run(&environment, &node.config(json!({})).to_string()), Outcome::silent_success());
    let body = json!({"containerId": "c1", "ifname": "eth0"});
    assert_eq!(node.asked(), [("POST /v1/cni/del".to_string(), body)]);
}

#[test]
fn check_hands_over_the_addresses_that_the_runtime_holds() {
    let node = Node::answering(done());
    assert_eq!(node.run("CHECK", previous()), Outcome::silent_success());
    let body = json!({
        "containerId": "c1",
        "ifname": "eth0",
        "netns": "/var/run/netns/a",
        "addresses": ["10.65.0.3/32"],
    });
    assert_eq!(node.asked(), [("POST /v1/cni/check".to_string(), body)]);
}

#[test]
fn gc_and_status_need_no_container() {
    let node = Node::answering(done());
    for (command, keys) in [("GC", valid()), ("STATUS", json!({}))] {
        let config = node.config(keys).to_string();
        assert_eq!(run(&[("CNI_COMMAND", command)], &config), Outcome::silent_success());
    }
    let valid = json!({"valid": [{"containerId": "c1", "ifname": "eth0"}]});
    assert_eq!(
        node.asked(),
        [("POST /v1/cni/gc".to_string(), valid), ("GET /v1/cni/status".to_string(), Value::Null)]
    );
}

#[test]
fn gc_without_its_list_frees_nothing() {
    let node = Node::answering(done());
    node.run("GC", json!({}))
        .assert_error(7, "invalid network configuration: GC needs `cni.dev/valid-attachments`");
    assert_eq!(node.asked(), []);
}

#[test]
fn a_refusal_of_the_daemon_reaches_the_runtime_as_it_is() {
    let node = Node::answering(refusal());
    for (command, keys) in [
        ("ADD", json!({})),
        ("DEL", json!({})),
        ("CHECK", previous()),
        ("GC", valid()),
        ("STATUS", json!({})),
    ] {
        let output = json!({
            "cniVersion": "1.1.0",
            "code": 101,
            "msg": "bh0a1b2c3d is missing",
            "details": "delete the pod",
        });
        assert_eq!(node.run(command, keys), Outcome { status: 1, output }, "{command}");
    }
    assert_eq!(node.queued(), [], "the runtime repeats a refused DEL");
}

#[test]
fn an_answer_that_is_not_understood_is_an_error() {
    let msg = "bulkheadd answered something that bulkhead-cni does not understand";
    for raw in ["SSH-2.0-OpenSSH_9.2\r\n", "HTTP/1.0 200 OK\r\n\r\n[]", "HTTP/1.0 500 X\r\n\r\noops"] {
        let node = Node::answering(Answer::Raw(raw.into()));
        node.run("ADD", json!({})).assert_error(6, msg);
        node.run("DEL", json!({})).assert_error(6, msg);
        node.run("STATUS", json!({})).assert_error(50, "bulkheadd does not answer, no pod can be added");
    }
}

#[test]
fn verbs_that_a_version_does_not_have_are_refused() {
    let node = Node::answering(done());
    for (command, versions) in [
        ("CHECK", vec!["0.3.1"]),
        ("GC", vec!["0.3.1", "0.4.0", "1.0.0"]),
        ("STATUS", vec!["0.3.1", "0.4.0", "1.0.0"]),
    ] {
        for version in versions {
            let outcome = node.run(command, json!({"cniVersion": version}));
            outcome.assert_error(1, &format!("CNI version {version} has no {command}"));
            assert_eq!(outcome.output["cniVersion"], version);
        }
    }
    assert_eq!(node.asked(), []);
}

#[test]
fn an_unsupported_version_is_answered_in_the_newest() {
    let outcome = Node::down().run("ADD", json!({"cniVersion": "0.2.0"}));
    let output = json!({
        "cniVersion": "1.1.0",
        "code": 1,
        "msg": "CNI version 0.2.0 is not supported",
        "details": "set cniVersion to one of these: 0.3.1, 0.4.0, 1.0.0, 1.1.0",
    });
    assert_eq!(outcome, Outcome { status: 1, output });
}

#[test]
fn version_needs_neither_configuration_nor_daemon() {
    let output = json!({"cniVersion": "1.1.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]});
    assert_eq!(run(&[("CNI_COMMAND", "VERSION")], ""), Outcome { status: 0, output });
}

#[test]
fn bad_input_is_told_by_its_code() {
    run(&environment("ADD"), "{").assert_error(6, "the configuration on standard input is not JSON");
    run(&[("CNI_COMMAND", "ADD")], "").assert_error(4, "environment variable CNI_CONTAINERID is missing");
    run(&[], "").assert_error(4, "environment variable CNI_COMMAND is missing");
}
