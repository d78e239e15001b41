//! Events on pods that could not be connected, or whose address is lost: `kubectl describe pod` says why, beside what the runtime makes of it.

use crate::source::kubernetes::reason;
use bulkhead_api::messages::{ErrorReply, PodRef, code};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::sync::mpsc;
use tracing::debug;

/// Beyond it events are lost, and the log has them.
const QUEUE: usize = 64;
/// The API server takes no longer note.
const NOTE: usize = 1000;

/// Where the node tells of them. Never waits; without an API server nobody listens.
#[derive(Clone, Debug, Default)]
pub struct PodEvents(Option<mpsc::Sender<(PodRef, Event)>>);

impl PodEvents {
    /// A task publishes what is told until the last of these is gone.
    pub fn publish(client: Client, node: String) -> Self {
        let (sender, mut received) = mpsc::channel(QUEUE);
        let recorder =
            Recorder::new(client, Reporter { controller: "bulkheadd".into(), instance: Some(node) });
        tokio::spawn(async move {
            while let Some((pod, event)) = received.recv().await {
                if let Err(e) = recorder.publish(&event, &reference(pod)).await {
                    debug!(error = reason(&e), "an event of a pod is lost");
                }
            }
        });
        Self(Some(sender))
    }

    pub fn not_connected(&self, pod: &PodRef, error: &ErrorReply) {
        self.tell(pod, not_connected(error));
    }

    /// Its address is another node's.
    pub fn address_lost(&self, pod: &PodRef, why: &str) {
        self.tell(pod, warning("AddressLost", "Keep", why));
    }

    fn tell(&self, pod: &PodRef, event: Event) {
        if let Some(sender) = &self.0 {
            let _ = sender.try_send((pod.clone(), event));
        }
    }
}

fn reference(pod: PodRef) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(pod.namespace),
        name: Some(pod.name),
        uid: pod.uid,
        ..ObjectReference::default()
    }
}

/// Errors of one reason are counted in one event.
fn not_connected(error: &ErrorReply) -> Event {
    let reason = match error.code {
        code::NO_ADDRESS => "NoAddress",
        code::INVALID_CONFIG => "InvalidConfiguration",
        code::TRY_AGAIN_LATER => "NetworkNotReady",
        _ => "NetworkFailed",
    };
    let note = if error.details.is_empty() {
        error.msg.clone()
    } else {
        format!("{}: {}", error.msg, error.details)
    };
    warning(reason, "Connect", &note)
}

fn warning(reason: &str, action: &str, note: &str) -> Event {
    Event {
        type_: EventType::Warning,
        reason: reason.into(),
        note: Some(note.chars().take(NOTE).collect()),
        action: action.into(),
        secondary: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reason_is_cut_to_what_an_event_may_hold() {
        let error =
            ErrorReply { code: code::NO_ADDRESS, msg: "no address".into(), details: "é".repeat(2000) };
        let event = not_connected(&error);
        assert_eq!(event.reason, "NoAddress");
        assert_eq!(event.note.map(|n| n.chars().count()), Some(NOTE));
    }
}
