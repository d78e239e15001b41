//! The program as people and scripts run it, against a socket that answers by a script.

#![allow(clippy::unwrap_used)]

#[path = "../../api/tests/responder/mod.rs"]
mod responder;

use responder::{Answer, Responder};
use serde_json::{Value, json};
use std::{
    path::Path,
    process::{Command, Stdio},
};

struct Outcome {
    status: i32,
    out: String,
    err: String,
}

fn bulkhead(socket: &Path, arguments: &[&str]) -> Outcome {
    let done = Command::new(env!("CARGO_BIN_EXE_bulkhead"))
        .env_clear()
        .env("BULKHEAD_SOCKET", socket)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Outcome {
        status: done.status.code().unwrap(),
        out: String::from_utf8(done.stdout).unwrap(),
        err: String::from_utf8(done.stderr).unwrap(),
    }
}

fn route() -> Value {
    json!({"total": 1, "routes": [{
        "prefix": "10.65.0.0/26",
        "direction": "advertised",
        "peer": "leaf",
        "nextHop": "192.0.2.11",
        "asPath": [],
        "communities": [],
        "stale": false,
        "learned": false,
    }]})
}

fn explanation() -> Value {
    let end = |address: &str| json!({"address": address, "knownAs": ["world"], "identity": 2});
    json!({
        "allowed": false,
        "generation": 12,
        "from": end("192.0.2.7"),
        "to": end("10.66.0.2"),
        "protocol": "tcp",
        "port": 8080,
        "decisions": [{
            "direction": "ingress",
            "partition": "web",
            "allowed": false,
            "audit": false,
            "rule": {"number": 4, "name": "Partition/web: no rule allows it (default deny)"},
        }],
    })
}

#[test]
fn every_command_asks_for_its_own_page() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Responder::always(dir.path(), Answer::Json(200, json!([])));
    for arguments in [vec!["endpoints"], vec!["partitions"], vec!["drops"], vec!["bgp", "peers"]] {
        assert_eq!(bulkhead(daemon.socket(), &arguments).status, 0, "{arguments:?}");
    }
    bulkhead(daemon.socket(), &["status"]);
    assert_eq!(bulkhead(daemon.socket(), &["node", "drain-routes", "--peer", "leaf-a"]).status, 0);
    bulkhead(daemon.socket(), &["explain", "shop/web-1", "10.65.0.3", "--protocol", "UDP", "--port", "53"]);
    let get = |path: &str| (format!("GET {path}"), Value::Null);
    let drain = json!({"what": {"peers": ["leaf-a"]}, "withdrawAfter": 60, "undo": false});
    let flow = json!({"from": "shop/web-1", "to": "10.65.0.3", "protocol": "udp", "port": 53});
    assert_eq!(
        daemon.asked(),
        [
            get("/v1/endpoints"),
            get("/v1/partitions"),
            get("/v1/drops"),
            get("/v1/bgp/peers"),
            get("/v1/status"),
            ("POST /v1/node/drain-routes".to_string(), drain),
            ("POST /v1/explain".to_string(), flow),
        ]
    );
}

#[test]
fn a_pipe_gets_a_table_without_colour_or_json() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Responder::always(dir.path(), Answer::Json(200, route()));
    let table = bulkhead(daemon.socket(), &["bgp", "routes"]);
    assert_eq!(
        table.out,
        "\
PREFIX        DIRECTION   PEER  NEXT HOP    AS PATH  COMMUNITIES
10.65.0.0/26  advertised  leaf  192.0.2.11  -        -
"
    );
    let program = bulkhead(daemon.socket(), &["bgp", "routes", "-o", "json"]);
    assert_eq!((program.status, program.err.as_str()), (0, ""));
    assert_eq!(serde_json::from_str::<Value>(&program.out).unwrap(), route());
}

#[test]
fn routes_are_asked_for_by_direction_peer_and_number() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Responder::always(dir.path(), Answer::Json(200, route()));
    for arguments in [
        vec!["bgp", "routes"],
        vec!["bgp", "received"],
        vec!["bgp", "advertised", "leaf", "--limit", "7"],
        vec!["bgp", "why", "10.65.0.7"],
    ] {
        bulkhead(daemon.socket(), &arguments);
    }
    let routes = |request: Value| ("POST /v1/bgp/routes".to_string(), request);
    assert_eq!(
        daemon.asked(),
        [
            routes(json!({"limit": 500})),
            routes(json!({"direction": "received", "limit": 500})),
            routes(json!({"direction": "advertised", "peer": "leaf", "limit": 7})),
            ("POST /v1/bgp/why".to_string(), json!({"prefix": "10.65.0.7/32"})),
        ]
    );
}

#[test]
fn a_denied_flow_is_an_answer_and_not_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Responder::always(dir.path(), Answer::Json(200, explanation()));
    let told = bulkhead(daemon.socket(), &["explain", "192.0.2.7", "10.66.0.2", "--port", "8080"]);
    assert_eq!((told.status, told.err.as_str()), (0, ""));
    assert_eq!(
        told.out,
        "\
192.0.2.7 (world)  ->  10.66.0.2 (world)   tcp/8080
  ingress  partition web  denied  Partition/web: no rule allows it (default deny)
denied in generation 12

no live connection
"
    );
}

#[test]
fn a_refusal_is_status_1_with_the_daemon_s_words() {
    let dir = tempfile::tempdir().unwrap();
    let refusal = json!({"code": 3, "msg": "no pod shop/web-9 on this node", "details": "name its address"});
    let daemon = Responder::always(dir.path(), Answer::Json(404, refusal));
    let told = bulkhead(daemon.socket(), &["explain", "shop/web-9", "10.66.0.2", "--port", "8080"]);
    assert_eq!((told.status, told.out.as_str()), (1, ""));
    assert_eq!(told.err, "bulkhead: no pod shop/web-9 on this node: name its address\n");
}

#[test]
fn no_answer_and_wrong_usage_are_status_2() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("none.sock");
    let down = bulkhead(&socket, &["status"]);
    assert_eq!((down.status, down.out.as_str()), (2, ""));
    assert!(down.err.starts_with(&format!("bulkhead: cannot reach the daemon at {}: ", socket.display())));
    assert!(down.err.ends_with("\nhint: does bulkheadd run on this node? --socket names another socket\n"));
    let portless = bulkhead(&socket, &["explain", "a/b", "c/d"]);
    assert_eq!(portless.status, 2);
    assert!(portless.err.contains("tcp has ports: say which with --port"), "{}", portless.err);
    assert_eq!(bulkhead(&socket, &["reboot"]).status, 2);
}

#[test]
fn the_version_is_told_without_a_daemon() {
    let told = bulkhead(Path::new("/nonexistent"), &["--version"]);
    assert_eq!((told.status, told.out), (0, format!("bulkhead {}\n", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn commands_of_policy_ask_for_what_they_were_told() {
    let dir = tempfile::tempdir().unwrap();
    let info = json!({"generation": 7, "since": 0, "objects": [], "changed": []});
    let ask = |arguments: &[&str], answer: &Value| {
        let place = tempfile::tempdir().unwrap();
        let daemon = Responder::always(place.path(), Answer::Json(200, answer.clone()));
        let told = bulkhead(daemon.socket(), arguments);
        assert_eq!((told.status, told.err.as_str()), (0, ""), "{arguments:?}");
        daemon.asked().remove(0)
    };
    let get = |path: &str| (format!("GET {path}"), Value::Null);
    let post = |path: &str, body: Value| (format!("POST {path}"), body);
    let list = json!([]);
    assert_eq!(ask(&["policy", "generations"], &list), get("/v1/policy/generations"));
    assert_eq!(ask(&["policy", "generations", "7"], &list), get("/v1/policy/generations?generation=7"));
    assert_eq!(ask(&["policy", "rules"], &list), post("/v1/policy/rules", json!({"neverHit": false})));
    assert_eq!(
        ask(&["policy", "rules", "--never-hit", "--partition", "web"], &list),
        post("/v1/policy/rules", json!({"neverHit": true, "partition": "web"}))
    );
    assert_eq!(ask(&["policy", "rollback"], &info), post("/v1/policy/rollback", json!({})));
    assert_eq!(
        ask(&["policy", "rollback", "--to", "5"], &info),
        post("/v1/policy/rollback", json!({"to": 5}))
    );
    assert_eq!(ask(&["policy", "release"], &info), post("/v1/policy/release", json!({})));
    for (name, text) in [("b.json", "{}"), ("a.yaml", "kind: A"), (".c.yaml", "kind: C"), ("d.txt", "d")] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let file = |name: &str, text: &str| json!({"name": dir.path().join(name), "text": text});
    let asked = ask(
        &["diff", "-f", dir.path().to_str().unwrap(), "--prune", "--delete", "Partition/web"],
        &policy_diff(&json!([])),
    );
    let files = json!([file("a.yaml", "kind: A"), file("b.json", "{}")]);
    assert_eq!(
        asked,
        post("/v1/policy/diff", json!({"files": files, "delete": ["Partition/web"], "prune": true}))
    );
    let piped = json!({"files": [{"name": "-", "text": ""}], "delete": [], "prune": false});
    assert_eq!(ask(&["diff", "-f", "-"], &policy_diff(&json!([]))), post("/v1/policy/diff", piped));
}

fn policy_diff(changes: &Value) -> Value {
    json!({"changed": ["~Partition/web"], "changes": changes, "cutConnections": 0})
}

#[test]
fn a_diff_ends_as_kubectl_diff_does() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("web.yaml");
    std::fs::write(&file, "kind: Partition\n").unwrap();
    let ask = |answer: Answer, file: &Path| {
        let place = tempfile::tempdir().unwrap();
        let daemon = Responder::always(place.path(), answer);
        bulkhead(daemon.socket(), &["diff", "-f", file.to_str().unwrap()])
    };
    let none = ask(Answer::Json(200, policy_diff(&json!([]))), &file);
    assert_eq!((none.status, none.err.as_str()), (0, ""));
    let rule = json!({"number": 1, "name": "no rule allows it"});
    let change = json!([{
        "allows": false, "from": ["partition web"], "to": ["world"], "protocol": "tcp", "ports": "80",
        "example": {"from": "10.66.0.1", "to": "192.0.2.7", "protocol": 6, "port": 80},
        "before": rule, "after": rule, "cutConnections": 0,
    }]);
    let some = ask(Answer::Json(200, policy_diff(&change)), &file);
    assert_eq!(some.status, 1);
    assert!(some.out.contains("- deny") && some.out.contains("partition web"), "{}", some.out);
    let refusal = json!({"code": 7, "msg": "the change would be refused", "details": "web.yaml:1: kind"});
    assert_eq!(ask(Answer::Json(400, refusal), &file).status, 2);
    let missing = ask(Answer::Json(200, policy_diff(&json!([]))), &dir.path().join("gone.yaml"));
    assert_eq!(missing.status, 2);
    assert!(missing.err.contains("gone.yaml"), "{}", missing.err);
}

const SHOP: &str = "
apiVersion: bulkhead.dev/v1alpha1
kind: Partition
metadata: {name: shop}
spec: {policyID: 1, namespaces: [shop], podCIDRs: [10.66.0.0/16]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
status: {podIPs: [{ip: 10.66.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db-1, namespace: shop, labels: {app: db}}
status: {podIPs: [{ip: 10.66.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db-2, namespace: shop, labels: {app: db}}
status: {podIPs: [{ip: 10.66.0.3}]}
";

const ISOLATED: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 5432}]
";

#[test]
fn a_diff_on_files_alone_needs_no_daemon() {
    let (objects, change) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(objects.path().join("shop.yaml"), SHOP).unwrap();
    let file = change.path().join("policy.yaml");
    let diff = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let (objects, file) = (objects.path().to_str().unwrap(), file.to_str().unwrap());
        bulkhead(Path::new("/nobody"), &["diff", "--objects", objects, "-f", file])
    };
    let none = diff(SHOP);
    assert_eq!((none.status, none.err.as_str()), (0, ""));
    let some = diff(ISOLATED);
    let expected = "\
+NetworkPolicy/shop/db

NEWLY   FROM                                                         TO                             PROTOCOL                          PORTS               FOR EXAMPLE                    BY                                CUTS
- deny  other pods of partition shop; pods app=db in namespace shop  pods app=db in namespace shop  tcp                               all                 10.66.0.4 -> 10.66.0.2 tcp/80  NetworkPolicy/shop/db (isolates)     0
- deny  any pod                                                      pods app=db in namespace shop  udp, sctp, icmp, other protocols  all                 10.66.0.4 -> 10.66.0.2 udp/53  NetworkPolicy/shop/db (isolates)     0
- deny  pods app=web in namespace shop                               pods app=db in namespace shop  tcp                               0-5431, 5433-65535  10.66.0.1 -> 10.66.0.2 tcp/80  NetworkPolicy/shop/db (isolates)     0

no live connection of this node would be cut
";
    assert_eq!(some.out, expected);
    assert_eq!(some.status, 1);
    let wrong = diff(&ISOLATED.replace("port: 5432", "port: 543200"));
    assert_eq!(wrong.status, 2);
    assert!(wrong.err.contains("spec.ingress[0].ports[0].port"), "{}", wrong.err);
    let cidrs =
        (0..33_000).map(|n| format!("100.64.{}.{}/32", n / 256, n % 256)).collect::<Vec<_>>().join(", ");
    let large = diff(&format!(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: NetworkGroup\nmetadata: {{name: many}}\nspec: {{cidrs: [{cidrs}]}}\n"
    ));
    assert_eq!(large.status, 2, "{}", large.err);
    assert!(
        large.err.contains("IDENTITY_PREFIX needs 33001 entries and has room for 32768"),
        "{}",
        large.err
    );
}

#[test]
fn a_diff_on_files_alone_knows_of_the_cluster_what_it_is_told() {
    let (objects, change) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let shop = |rest: &str| {
        let head = "apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {name: shop}\n";
        format!("{head}spec: {{policyID: 1, podCIDRs: [10.66.0.0/16], {rest}}}\n")
    };
    std::fs::write(objects.path().join("shop.yaml"), shop("allowClusterDNS: true")).unwrap();
    let file = change.path().join("shop.yaml");
    let diff = |rest: &str, told: &[&str]| {
        std::fs::write(&file, shop(rest)).unwrap();
        let (objects, file) = (objects.path().to_str().unwrap(), file.to_str().unwrap());
        bulkhead(Path::new("/nobody"), &[&["diff", "--objects", objects, "-f", file], told].concat())
    };
    let without_dns = "allowClusterDNS: false";
    assert_eq!(diff(without_dns, &[]).status, 0, "no address answers cluster DNS");
    let told = diff(without_dns, &["--cluster-dns", "10.96.0.10"]);
    assert!(told.out.contains("10.66.0.1 -> 10.96.0.10 udp/53"), "{}", told.out);
    assert_eq!(told.status, 1);
    let open = "ingress: [{from: [{partition: default}]}]";
    assert_eq!(diff(open, &[]).status, 0, "the default partition has no range");
    let told = diff(open, &["--pod-cidr", "10.64.0.0/16"]);
    assert!(told.out.starts_with("~Partition/shop\n\n"), "{}", told.out);
    assert!(told.out.contains("+ allow  partition default  partition shop"), "{}", told.out);
    assert_eq!(told.status, 1);
    // What is compared with must be whole.
    std::fs::write(objects.path().join("torn.yaml"), "kind: [").unwrap();
    let torn = diff(open, &[]);
    assert_eq!(torn.status, 2);
    assert!(torn.err.contains("torn.yaml"), "{}", torn.err);
}

/// A pod that ran before the partition was laid over its namespace.
const OLD_POD: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: old, namespace: shop, labels: {app: old}}
spec: {nodeName: n1}
status: {podIPs: [{ip: 10.99.0.5}]}
";

const ITS_CLAIM: &str = "
apiVersion: bulkhead.dev/v1alpha1
kind: IPBlock
metadata: {name: 10-99-0-0-26}
spec: {cidr: 10.99.0.0/26, partition: default, node: n1}
";

#[test]
fn a_diff_on_files_alone_knows_pods_beyond_their_range_by_their_nodes_claims() {
    let (objects, change) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(objects.path().join("shop.yaml"), SHOP).unwrap();
    std::fs::write(objects.path().join("old.yaml"), OLD_POD).unwrap();
    let file = change.path().join("policy.yaml");
    let diff = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let (objects, file) = (objects.path().to_str().unwrap(), file.to_str().unwrap());
        bulkhead(Path::new("/nobody"), &["diff", "--objects", objects, "-f", file])
    };
    // Of a pod without a claim on its address no selector says anything: it is the world.
    let isolated = ISOLATED.replace("app: db", "app: old");
    let world = diff(&isolated);
    assert!(world.err.is_empty() && !world.out.contains("10.99.0.5"), "{} {}", world.out, world.err);
    std::fs::write(objects.path().join("claims.yaml"), ITS_CLAIM).unwrap();
    let picked = diff(&isolated);
    assert_eq!(picked.status, 1, "{}", picked.err);
    assert!(picked.out.contains("-> 10.99.0.5 tcp/"), "{}", picked.out);
}
