//! The API server calls a webhook: a pod of an isolated partition. It is no node of this cluster, as where somebody else runs it.

use crate::{
    rights::refusal,
    site::{Case, SOON, Site},
};
use bulkhead_lab::{Pod, Result, unmet, until};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::{Value, json};
use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

pub const CASES: &[(&str, Case)] =
    &[("the API server calls a webhook in an isolated partition, unless that is forbidden", called)];

const PORT: u16 = 8443;
/// What the webhook answers.
const WORDS: &str = "nothing is made here";
const PATIENCE: Duration = Duration::from_secs(5);

fn partition(fields: &str) -> String {
    format!(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {{name: hook}}\n\
         spec: {{policyID: 33, namespaces: [hook], podCIDRs: [10.77.0.0/16]{fields}}}\n"
    )
}

fn called(site: &mut Site) -> Result<()> {
    let pod = "apiVersion: v1\nkind: Namespace\nmetadata: {name: hook}\n---\n\
        apiVersion: v1\nkind: Pod\nmetadata: {name: guard, namespace: hook}\n\
        spec: {nodeName: node1, containers: [{name: c, image: none}]}\n---\n";
    site.control.apply(&(pod.to_string() + &partition("")))?;
    let accepted = ["wait", "partition/hook", "--for=condition=Accepted", "--timeout=60s"];
    site.control.kubectl(&accepted)?;
    let mut pod = Pod::create(0, "hook", "guard")?;
    until("the webhook's pod is wired", SOON, || pod.add(&site.node).map(|_| Some(())))?;
    let route = format!("{} via {}", pod.v4, site.node.v4);
    site.control.netns.ip(&format!("route add {route}"))?;
    let _webhook = Webhook::start(site, &pod)?;
    let authority =
        base64::Engine::encode(&base64::prelude::BASE64_STANDARD, site.control.authority().certificate());
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "guard"},
        "webhooks": [{
            "name": "guard.bulkhead.dev",
            "clientConfig": {"url": format!("https://{}:{PORT}/", pod.v4), "caBundle": authority},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "hook"}},
            "failurePolicy": "Fail",
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
            "timeoutSeconds": 2,
        }],
    });
    site.control.apply(&configuration.to_string())?;
    wait_said(site, &[WORDS])?;
    site.control.apply(&partition(", allowControlPlane: false"))?;
    wait_said(site, &["failed calling webhook", "deadline exceeded"])?;
    // By a rule that says who may call, and nothing that is built in.
    let rule = "ingress: [{from: [{controlPlane: {}}], ports: [{port: 8443}]}]";
    site.control.apply(&partition(&format!(", allowControlPlane: false, {rule}")))?;
    wait_said(site, &[WORDS])?;
    site.control.kubectl(&["delete", "validatingwebhookconfiguration", "guard"])?;
    site.control.netns.ip(&format!("route del {route}"))?;
    pod.del(&site.node)?;
    site.control.kubectl(&["delete", "partition", "hook"])?;
    site.control.kubectl(&["delete", "namespace", "hook", "--wait=false"]).map(drop)
}

/// Whoever would create what the webhook is asked about is told this in the end.
fn wait_said(site: &Site, words: &[&str]) -> Result<()> {
    let create = ["create", "configmap", "wanted", "-n", "hook", "--dry-run=server"];
    until(&format!("the API server says {words:?}"), SOON, || {
        let said = refusal(site, &site.control.admin(), &create)?;
        if words.iter().all(|w| said.contains(w)) { Ok(Some(())) } else { unmet(said) }
    })
}

/// Denies whatever it is asked about.
struct Webhook {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Webhook {
    fn start(site: &Site, pod: &Pod) -> Result<Self> {
        let configuration = Arc::new(configuration(site, pod).map_err(io::Error::other)?);
        let listener = pod.netns.run(|| Ok(TcpListener::bind(("0.0.0.0", PORT))?))?;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    // Who does not wait for the answer has no use for it.
                    Ok((stream, _)) => drop(answer(stream, configuration.clone())),
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn configuration(
    site: &Site,
    pod: &Pod,
) -> std::result::Result<ServerConfig, Box<dyn std::error::Error + Send + Sync>> {
    let own = site.control.authority().server(&[pod.v4.into()], &[])?;
    let certificate = CertificateDer::from_pem_slice(own.certificate.as_bytes())?;
    let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(versions.with_no_client_auth().with_single_cert(vec![certificate], key)?)
}

/// One request, one answer.
fn answer(stream: TcpStream, configuration: Arc<ServerConfig>) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let connection = ServerConnection::new(configuration).map_err(io::Error::other)?;
    let mut stream = BufReader::new(StreamOwned::new(connection, stream));
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        match line.trim_end().to_ascii_lowercase().split_once(": ") {
            Some(("content-length", value)) => length = value.parse().map_err(io::Error::other)?,
            Some(_) => {}
            None if line.trim().is_empty() => break,
            // The request's own line.
            None => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    let review: Value = serde_json::from_slice(&body)?;
    let verdict = json!({"uid": review["request"]["uid"], "allowed": false, "status": {"message": WORDS}});
    let answer = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": verdict});
    let answer = answer.to_string();
    let tls = stream.get_mut();
    write!(
        tls,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{answer}",
        answer.len()
    )?;
    tls.conn.send_close_notify();
    tls.flush()
}
