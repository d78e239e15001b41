//! The verbs: which request each makes of the daemon, and what it does when there is no answer.
//!
//! | verb | the daemon does not answer |
//! | --- | --- |
//! | ADD, CHECK, GC | code 11, try again later |
//! | STATUS | code 50, no ADD would work |
//! | DEL | queued on disk, success |

use crate::{
    config::{Config, Version},
    env::Call,
    error, queue, result,
};
use bulkhead_api::{
    client::{self, ClientError},
    messages::{Attach, Attachment, AttachmentId, Check, Detach, ErrorReply, Gc, PodRef, code},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

/// The reply `{}`; room for more in it.
type Done = Map<String, Value>;

/// The result to print, if the verb has one.
pub fn run(call: Call, config: &Config) -> Result<Option<Value>, ErrorReply> {
    since(&call, config.version)?;
    match call {
        Call::Add { id, netns, pod } => add(id, netns, pod, config).map(Some),
        Call::Del { id, netns } => del(Detach { id, netns }, config).map(|()| None),
        Call::Check { id, netns } => check(id, netns, config).map(|()| None),
        Call::Gc => gc(config).map(|()| None),
        Call::Status => status(config).map(|()| None),
        Call::Version => Ok(Some(result::versions())),
    }
}

/// Whether the caller's version of the specification has the verb.
fn since(call: &Call, version: Version) -> Result<(), ErrorReply> {
    let (verb, since) = match call {
        Call::Check { .. } => ("CHECK", Version::V0_4_0),
        Call::Gc => ("GC", Version::V1_1_0),
        Call::Status => ("STATUS", Version::V1_1_0),
        Call::Add { .. } | Call::Del { .. } | Call::Version => return Ok(()),
    };
    if version >= since {
        return Ok(());
    }
    Err(error::new(
        code::INCOMPATIBLE_VERSION,
        format!("CNI version {} has no {verb}", version.text()),
        format!("set cniVersion to {} or later", since.text()),
    ))
}

fn add(id: AttachmentId, netns: String, pod: PodRef, config: &Config) -> Result<Value, ErrorReply> {
    settle(&id, config)?;
    let (bandwidth, port_mappings) = (config.bandwidth, config.port_mappings.clone());
    let attach = Attach { id, netns, pod, bandwidth, port_mappings };
    let attachment: Attachment = post("/v1/cni/add", &attach, config).map_err(error::from_client)?;
    Ok(result::added(&attachment, &attach.netns, &config.dns, config.version))
}

/// A DEL of the same name that still waits comes first: carried out later, it would take the new interface away.
fn settle(id: &AttachmentId, config: &Config) -> Result<(), ErrorReply> {
    if !queue::holds(&config.state_dir, id) {
        return Ok(());
    }
    detach(&Detach { id: id.clone(), netns: None }, config).map_err(error::from_client)?;
    unqueue(id, config)
}

fn del(request: Detach, config: &Config) -> Result<(), ErrorReply> {
    match detach(&request, config) {
        Ok(()) => unqueue(&request.id, config),
        Err(e) if error::is_unanswered(&e) => queue::put(&config.state_dir, &request).map_err(|kept| {
            error::new(
                code::IO_FAILURE,
                "bulkheadd does not answer, and the DEL cannot be kept for it either",
                format!("{e}; {}/pending-del: {kept}", config.state_dir.display()),
            )
        }),
        Err(e) => Err(error::from_client(e)),
    }
}

fn detach(request: &Detach, config: &Config) -> Result<(), ClientError> {
    post("/v1/cni/del", request, config).map(|_: Done| ())
}

fn unqueue(id: &AttachmentId, config: &Config) -> Result<(), ErrorReply> {
    queue::remove(&config.state_dir, id)
        .map_err(|e| error::new(code::IO_FAILURE, "cannot remove a DEL that is done from pending-del", e))
}

fn check(id: AttachmentId, netns: String, config: &Config) -> Result<(), ErrorReply> {
    let addresses = config.previous_addresses(&id.ifname)?;
    post("/v1/cni/check", &Check { id, netns, addresses }, config)
        .map(|_: Done| ())
        .map_err(error::from_client)
}

fn gc(config: &Config) -> Result<(), ErrorReply> {
    let valid = config.valid_attachments()?;
    post("/v1/cni/gc", &Gc { valid }, config).map(|_: Done| ()).map_err(error::from_client)
}

fn status(config: &Config) -> Result<(), ErrorReply> {
    client::request::<(), Done>(&config.socket, "/v1/cni/status", None, config.deadline)
        .map(|_| ())
        .map_err(error::from_client_status)
}

fn post<B: Serialize, R: DeserializeOwned>(path: &str, body: &B, config: &Config) -> Result<R, ClientError> {
    client::request(&config.socket, path, Some(body), config.deadline)
}
