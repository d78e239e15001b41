//! What the cluster has of this node's claims. Whoever takes one away tells nobody: a node that is deleted takes its blocks with
//! it, and people delete what they like.

use crate::source::kubernetes::broken;
use bulkhead_api::objects::AddressBlock;
use futures_util::StreamExt;
use ipnetwork::IpNetwork;
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt, reflector,
        watcher::{self, Event},
    },
};
use std::collections::BTreeSet;
use tokio::sync::watch;
use tracing::warn;

/// Blocks that the API server has as this node's; `None` until they were listed.
pub type ToldClaims = watch::Receiver<Option<BTreeSet<IpNetwork>>>;

/// Watches this node's claims until the receiver is gone.
pub fn watch_claims(client: Client, node: &str) -> ToldClaims {
    let (sender, receiver) = watch::channel(None);
    let (store, writer) = reflector::store();
    let config = watcher::Config::default().fields(&format!("spec.node={node}"));
    let watcher = watcher::watcher(Api::<AddressBlock>::all(client), config);
    let mut events = Box::pin(watcher.default_backoff().reflect(writer));
    tokio::spawn(async move {
        let mut warned = None;
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = sender.closed() => None,
            };
            match event {
                None => return,
                Some(Ok(Event::Init | Event::InitApply(_))) => {}
                Some(Ok(_)) => {
                    warned = None;
                    let claimed = store.state().iter().map(|block| block.spec.cidr).collect();
                    sender.send_replace(Some(claimed));
                }
                Some(Err(e)) => {
                    let reason = broken(&e);
                    if warned.as_ref() != Some(&reason) {
                        warn!(error = reason, "cannot watch this node's IPBlocks; begun anew");
                    }
                    warned = Some(reason);
                }
            }
        }
    });
    receiver
}
