//! What the speaker waits for: whose the fixed addresses of this node are, which is asked for when a session with a router
//! begins, and now and then; and what Secrets say.

use super::Node;
use crate::bgp::Why;
use bulkhead_api::messages::ObjectError;
use std::time::{Duration, Instant};

const ASK_AGAIN: Duration = Duration::from_secs(15);

impl Node {
    /// To be called when [`crate::bgp::Bgp::attention`] wakes, and now and then.
    pub async fn look_after_fixed(&mut self) {
        let begun = self.bgp.begun_since_asked().await;
        if begun.is_some() || self.ask_at <= Instant::now() {
            self.ask_at = Instant::now() + ASK_AGAIN;
            self.bgp.look_after_members().await;
            self.bgp.hear_others(&self.in_force).await;
            let before: Vec<_> = self.endpoints.lost().map(|(block, ..)| block).collect();
            let answers = self.endpoints.ask_for_fixed().await;
            let lost = self.endpoints.lost().map(|(block, ..)| block).filter(|b| !before.contains(b));
            self.tell_lost(&lost.collect::<Vec<_>>());
            if begun.is_some() || !answers.is_empty() {
                self.bgp.asked(begun, answers);
                self.announce_blocks().await;
            }
        } else if self.bgp.hear().await || self.bgp.has_news() {
            self.announce_blocks().await;
        }
    }

    /// Pods that cannot be reached, for their address is another node's or was not given up there.
    pub(super) fn fixed_errors(&self) -> Vec<ObjectError> {
        let quarantine = self.bgp.quarantine();
        let lost = quarantine.lost().map(|(address, node)| {
            let what_to_do = "it is not announced from here: delete the pod, or its IPReservation";
            (address.ip(), format!("is node {node}'s now, and {what_to_do}"))
        });
        let elsewhere = quarantine.waiting().filter(|(_, why)| matches!(why, Why::Elsewhere(_)));
        let waiting = elsewhere.map(|(address, why)| (address.ip(), format!("is not announced: {why}")));
        let error = |(address, words)| {
            let pod = self.endpoints.iter().find(|record| record.addresses.contains(&address))?;
            let object = Some(format!("Pod/{}/{}", pod.pod.namespace, pod.pod.name));
            let message = format!("its fixed address {address} {words}");
            Some(ObjectError { file: None, object, field: None, message })
        };
        lost.chain(waiting).filter_map(error).chain(self.bgp.untold()).collect()
    }
}
