//! The HTTP/JSON API on the unix socket. Every handler takes the node, asks it one thing, and gives the answer back.

use crate::node::Node;
use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bulkhead_api::messages::{
    Attach, BgpRoutesRequest, BgpWhyRequest, Check, Detach, DiffRequest, DrainRequest, ErrorReply,
    ExplainRequest, Gc, GenerationsRequest, Rollback, RulesRequest, code,
};
use ipnetwork::IpNetwork;
use serde::Serialize;
use std::{fs, io, os::unix::fs::PermissionsExt, path::Path, sync::Arc};
use tokio::{
    net::UnixListener,
    sync::{Mutex, OwnedMutexGuard},
};

/// One change at a time: the node is a single state.
pub type Shared = Arc<Mutex<Node>>;

/// Room for the files of a whole cluster in one `diff`.
const BODY_LIMIT: usize = 64 << 20;

/// Listens, taking the place of a socket that nobody serves any more.
///
/// # Errors
/// `AddrInUse` when another daemon answers on it.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another bulkheadd serves this socket: stop it first",
        ));
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

pub fn router(node: Shared) -> Router {
    Router::new()
        .route("/v1/cni/add", post(add))
        .route("/v1/cni/del", post(del))
        .route("/v1/cni/check", post(check))
        .route("/v1/cni/gc", post(gc))
        .route("/v1/cni/status", get(cni_status))
        .route("/v1/status", get(status))
        .route("/v1/endpoints", get(endpoints))
        .route("/v1/partitions", get(partitions))
        .route("/v1/policy/generations", get(generations))
        .route("/v1/policy/diff", post(diff))
        .route("/v1/policy/rollback", post(rollback))
        .route("/v1/policy/release", post(release))
        .route("/v1/policy/rules", post(rules))
        .route("/v1/drops", get(drops))
        .route("/v1/services", get(services))
        .route("/v1/explain", post(explain))
        .route("/v1/bgp/peers", get(bgp_peers))
        .route("/v1/bgp/routes", post(bgp_routes))
        .route("/v1/bgp/why", post(bgp_why))
        .route("/v1/node/drain-routes", post(drain_routes))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(node)
}

#[derive(Serialize)]
struct Done {}

fn reply<T: Serialize>(result: Result<T, ErrorReply>) -> Response {
    match result {
        Ok(value) => Json(value).into_response(),
        Err(error) => (status_of(&error), Json(error)).into_response(),
    }
}

fn status_of(error: &ErrorReply) -> StatusCode {
    match error.code {
        code::UNKNOWN_CONTAINER => StatusCode::NOT_FOUND,
        code::INVALID_CONFIG | code::INVALID_ENVIRONMENT | code::DECODE_FAILURE => StatusCode::BAD_REQUEST,
        code::TRY_AGAIN_LATER | code::NOT_AVAILABLE | code::LIMITED_CONNECTIVITY => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Carries a change out to its end, also when the client has gone meanwhile: half a change is nobody's wish.
async fn change<T, F>(
    node: Shared,
    work: impl FnOnce(OwnedMutexGuard<Node>) -> F + Send + 'static,
) -> Response
where
    T: Serialize + Send + 'static,
    F: Future<Output = Result<T, ErrorReply>> + Send,
{
    let task = tokio::spawn(async move { work(node.lock_owned().await).await });
    reply(task.await.unwrap_or_else(|e| {
        Err(ErrorReply {
            code: code::IO_FAILURE,
            msg: "the request was broken off".into(),
            details: e.to_string(),
        })
    }))
}

async fn add(State(node): State<Shared>, Json(request): Json<Attach>) -> Response {
    change(node, |mut node| async move { node.add(&request).await }).await
}

async fn del(State(node): State<Shared>, Json(request): Json<Detach>) -> Response {
    change(node, |mut node| async move { node.del(&request).await.map(|()| Done {}) }).await
}

async fn check(State(node): State<Shared>, Json(request): Json<Check>) -> Response {
    reply(node.lock().await.check(&request).await.map(|()| Done {}))
}

async fn gc(State(node): State<Shared>, Json(request): Json<Gc>) -> Response {
    change(node, |mut node| async move { node.gc(&request).await.map(|()| Done {}) }).await
}

async fn cni_status(State(node): State<Shared>) -> Response {
    reply(node.lock().await.available().map(|()| Done {}))
}

async fn status(State(node): State<Shared>) -> Response {
    reply(node.lock().await.status())
}

async fn endpoints(State(node): State<Shared>) -> Response {
    reply(Ok(node.lock().await.endpoints()))
}

async fn partitions(State(node): State<Shared>) -> Response {
    reply(Ok(node.lock().await.partitions()))
}

async fn generations(State(node): State<Shared>, Query(which): Query<GenerationsRequest>) -> Response {
    reply(node.lock().await.generations(which))
}

async fn diff(State(node): State<Shared>, Json(request): Json<DiffRequest>) -> Response {
    reply(node.lock().await.diff(&request))
}

async fn rollback(State(node): State<Shared>, Json(request): Json<Rollback>) -> Response {
    change(node, move |mut node| async move { node.rollback(request).await }).await
}

async fn release(State(node): State<Shared>) -> Response {
    change(node, |mut node| async move { node.release().await }).await
}

async fn rules(State(node): State<Shared>, Json(request): Json<RulesRequest>) -> Response {
    reply(node.lock().await.rules(&request))
}

async fn drops(State(node): State<Shared>) -> Response {
    reply(node.lock().await.drops())
}

async fn explain(State(node): State<Shared>, Json(request): Json<ExplainRequest>) -> Response {
    reply(node.lock().await.explain(&request))
}

async fn services(State(node): State<Shared>) -> Response {
    reply(Ok(node.lock().await.services()))
}

async fn bgp_peers(State(node): State<Shared>) -> Response {
    let bgp = node.lock().await.bgp.reader();
    reply(Ok(bgp.peers().await))
}

async fn bgp_routes(State(node): State<Shared>, Json(request): Json<BgpRoutesRequest>) -> Response {
    let bgp = node.lock().await.bgp.reader();
    reply(bgp.routes(&request).await)
}

async fn bgp_why(State(node): State<Shared>, Json(request): Json<BgpWhyRequest>) -> Response {
    let asked = request.prefix;
    let prefix = IpNetwork::new(asked.network(), asked.prefix()).unwrap_or(asked);
    let (bgp, origin) = {
        let node = node.lock().await;
        (node.bgp.reader(), node.origin(&prefix))
    };
    reply(Ok(bgp.why(&prefix, origin).await))
}

async fn drain_routes(State(node): State<Shared>, Json(request): Json<DrainRequest>) -> Response {
    change(node, |mut node| async move { node.drain(&request).await }).await
}
