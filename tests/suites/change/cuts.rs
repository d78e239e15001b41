//! Which live connections `diff` says a change would cut, where that is not read off their addresses; and changes that
//! would not come into force.

use super::{
    CALL, DEADLINE, FILE, LOST, eventually, node, now,
    policies::{LABELS, Live, NETWORK_POLICY, POLICY, diff, labelled},
    reaches, status,
};
use bulkhead_lab::{
    Error, Lab, Result, link::run, objects::more_prefixes_than_fit, unmet, until, wait::until_true,
};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
    time::Duration,
};

/// The file with fewer ports for web's calls.
fn from_port(text: &str, first: u16) -> Result<String> {
    match text.replacen("{port: 8000,", &format!("{{port: {first},"), 1) {
        same if same == text => unmet(format!("{FILE} is not what it was")),
        edited => Ok(edited),
    }
}

/// Nobody misses again what is gone already.
pub fn what_is_cut_already_is_not_counted_again(lab: &mut Lab) -> Result<()> {
    let original = lab.objects.read(FILE)?;
    let mut live = Live::open(lab)?;
    if !live.is_alive() {
        return unmet("the connection does not live");
    }
    lab.objects.write(FILE, &from_port(&original, 8081)?)?;
    eventually(lab, LOST, false)?;
    // Its entry stays for as long as its ends try: it is cut with every packet anew.
    if live.is_alive() {
        return unmet("the connection goes on");
    }
    let told = diff(lab, FILE, &from_port(&original, 8085)?)?;
    lab.objects.write(FILE, &original)?;
    eventually(lab, LOST, true)?;
    match (told.cut_connections, told.changes.len()) {
        (0, 1..) => Ok(()),
        _ => unmet(format!("{told:?}")),
    }
}

const WEB: &str = "web.yaml";
const NODE_PORT: u16 = 30080;

/// A pod of the default partition calls web's pod through the node's port: the hook sees the node's address.
pub fn a_masqueraded_connection_is_its_initiators(lab: &mut Lab) -> Result<()> {
    let (cart, front) = (lab.pod("shop/cart-0")?, lab.pod("web/front-0")?);
    let machine = &lab.nodes[front.node];
    let rules = format!(
        "table ip proxy {{ chain pre {{ type nat hook prerouting priority dstnat; ip daddr {} tcp dport {NODE_PORT} dnat to \
         {}:8080; }}; chain post {{ type nat hook postrouting priority srcnat; ct status dnat masquerade; }}; }}",
        machine.v4, front.v4
    );
    run(machine.netns.command("nft").arg(rules))?;
    let listener = front.netns.run(|| Ok(TcpListener::bind(SocketAddr::new(front.v4.into(), 8080))?))?;
    let called = SocketAddr::new(machine.v4.into(), NODE_PORT);
    let mut caller = cart.netns.run(|| Ok(TcpStream::connect_timeout(&called, CALL)?))?;
    let (mut accepted, seen) = listener.accept()?;
    if seen.ip() == cart.v4 {
        return unmet("nobody masquerades");
    }
    accepted.set_read_timeout(Some(CALL))?;
    let mut goes_on = || caller.write_all(b"x").is_ok() && accepted.read_exact(&mut [0]).is_ok();
    let original = lab.objects.read(WEB)?;
    let without = original.replacen("ports: [{port: 8080}]", "ports: [{port: 8081}]", 1);
    let told = until("the diff cuts one connection", DEADLINE, || match diff(lab, WEB, &without)? {
        told if told.cut_connections == 1 => Ok(Some(told)),
        told => unmet(format!("{told:?}")),
    })?;
    let line = told.changes.iter().find(|c| c.cut_connections == 1);
    if !goes_on()
        || !line.is_some_and(|c| !c.allows && c.from.iter().any(|f| f.contains("partition default")))
    {
        return unmet(format!("{told:?}"));
    }
    lab.objects.write(WEB, &without)?;
    until_true("the connection is cut", DEADLINE, || Ok(!goes_on()))?;
    lab.objects.write(WEB, &original)?;
    run(machine.netns.command("nft").arg("delete table ip proxy"))?;
    Ok(())
}

const MANY: &str = "many.yaml";

/// A daemon that is not optimised reads and compiles it for seconds.
const LONG: Duration = Duration::from_secs(60);

/// What the tables cannot hold is refused by the diff in the words of the refusal, and leaves in force what is.
pub fn what_the_tables_cannot_hold_is_refused_by_both(lab: &mut Lab) -> Result<()> {
    let (generation, text) = (status(node(lab))?.generation, more_prefixes_than_fit());
    let trial = lab.objects.dir().join(".many.trial");
    std::fs::write(&trial, &text)?;
    let diff = Command::new(bulkhead_lab::programs::find("bulkhead")?)
        .arg("--socket")
        .arg(node(lab).socket())
        .args(["diff", "-f"])
        .arg(&trial)
        .output()?;
    std::fs::remove_file(&trial)?;
    lab.objects.write(MANY, &text)?;
    let told = until("the refusal is told", LONG, || {
        let status = status(node(lab))?;
        let error = status.errors.into_iter().map(|e| e.message).find(|m| m.contains("room for"));
        Ok(error.map(|error| (error, status.generation)))
    });
    lab.objects.remove(MANY)?;
    until_true("nothing is refused any more", LONG, || Ok(status(node(lab))?.errors.is_empty()))?;
    let (error, kept) = told?;
    let said = String::from_utf8_lossy(&diff.stderr);
    if kept != generation || !said.contains(&error) || diff.status.code() != Some(2) {
        return unmet(format!(
            "`{error}`, generation {generation} became {kept}, and the diff says {diff:?}"
        ));
    }
    now(lab, LOST, true)
}

/// What is refused has given out no number, and is no reason to know nothing of pods that are labelled anew.
pub fn what_is_refused_leaves_no_trace_and_pods_are_followed(lab: &mut Lab) -> Result<()> {
    let follows = |app: &str, reached: bool| {
        lab.objects.write(LABELS, &labelled(app))?;
        until_true(&format!("{app} reaches: {reached}"), LONG, || Ok(reaches(lab, LOST)? == reached))
    };
    lab.objects.write(POLICY, NETWORK_POLICY)?;
    follows("other", false)?;
    follows("front", true)?;
    let numbers = || Ok::<_, Error>(std::fs::read_to_string(node(lab).state_dir().join("interner.json"))?);
    let before = numbers()?;
    lab.objects.write(MANY, &more_prefixes_than_fit())?;
    let meanwhile = || {
        until_true("the refusal is told", LONG, || Ok(!status(node(lab))?.errors.is_empty()))?;
        if numbers()? != before {
            return unmet("numbers were given out for what is refused".to_string());
        }
        follows("other", false)?;
        follows("front", true)?;
        let errors = status(node(lab))?.errors;
        if errors.len() == 1 { Ok(()) } else { unmet(format!("{errors:?}")) }
    };
    let done = meanwhile();
    for file in [MANY, POLICY, LABELS] {
        lab.objects.remove(file)?;
    }
    until_true("nothing is refused any more", LONG, || Ok(status(node(lab))?.errors.is_empty()))?;
    done?;
    eventually(lab, LOST, true)
}

const CLUSTER: &str = "admin.yaml";

fn cluster_policy(peer: &str) -> String {
    format!(
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: stop}}\nspec:\n  \
         tier: Admin\n  priority: 1\n  subject: {{namespaces: {{matchLabels: {{kubernetes.io/metadata.name: web}}}}}}\n  \
         egress:\n  - action: Deny\n    to: [{peer}]\n"
    )
}

/// What of a ClusterNetworkPolicy is not supported is refused by field; its version before stays, and all else goes on.
pub fn an_unsupported_cluster_policy_is_refused_by_field_and_the_rest_comes_into_force(
    lab: &mut Lab,
) -> Result<()> {
    let payments = "{namespaces: {matchLabels: {kubernetes.io/metadata.name: payments}}}";
    let (original, by_name) = (lab.objects.read(FILE)?, cluster_policy("{domainNames: [example.org]}"));
    eventually(lab, LOST, true)?;
    lab.objects.write(CLUSTER, &by_name)?;
    let told = |lab: &Lab| {
        until("the refusal is told", DEADLINE, || {
            let errors = status(node(lab))?.errors;
            Ok(errors.into_iter().find(|e| e.object.as_deref() == Some("ClusterNetworkPolicy/stop")))
        })
    };
    let error = told(lab)?;
    let field = "spec.egress[0].to[0].domainNames";
    if error.field.as_deref() != Some(field) || error.file.as_deref() != Some("admin.yaml:1") {
        return unmet(format!("{error:?}"));
    }
    let table = node(lab).cli(&["status"])?;
    if !table.contains(&format!("ClusterNetworkPolicy/stop: {field}: ")) {
        return unmet(table);
    }
    // Beside it other objects come into force, its own version before it stays.
    lab.objects.write(FILE, &from_port(&original, 8081)?)?;
    eventually(lab, LOST, false)?;
    lab.objects.write(FILE, &original)?;
    eventually(lab, LOST, true)?;
    lab.objects.write(CLUSTER, &cluster_policy(payments))?;
    eventually(lab, LOST, false)?;
    lab.objects.write(CLUSTER, &by_name)?;
    told(lab)?;
    now(lab, LOST, false)?;
    lab.objects.remove(CLUSTER)?;
    eventually(lab, LOST, true)?;
    match status(node(lab))?.errors.as_slice() {
        [] => Ok(()),
        errors => unmet(format!("{errors:?}")),
    }
}
