//! The kernel's word that something may have changed of what uplinks are chosen by: interfaces, addresses, default routes. What it is
//! now is to be asked for.

use super::{NetError, links::is_ours};
use futures_util::StreamExt;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage as Message,
    address::AddressScope,
    link::{LinkAttribute, LinkMessage},
};
use rtnetlink::{MulticastGroup, new_multicast_connection};
use std::{pin::pin, time::Duration};
use tokio::{sync::watch, time::sleep};
use tracing::warn;

/// Changes that come in such a time are one: an interface that comes is many.
const GATHER: Duration = Duration::from_millis(100);
const RETRY: Duration = Duration::from_secs(5);

const LINKS: [MulticastGroup; 3] =
    [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
const ROUTES: [MulticastGroup; 2] = [MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route];

/// Tells as long as somebody listens. `routes`: of default routes, too, which costs a look at every route that comes and goes.
pub fn watch_changes(routes: bool) -> Result<watch::Receiver<()>, NetError> {
    let groups: Vec<_> = LINKS.iter().chain(if routes { &ROUTES[..] } else { &[] }).copied().collect();
    let open = move || new_multicast_connection(&groups).map_err(NetError::Socket);
    let (connection, _, mut changes) = open()?;
    tokio::spawn(connection);
    let (tell, told) = watch::channel(());
    tokio::spawn(async move {
        loop {
            let message = tokio::select! {
                message = changes.next() => message,
                () = tell.closed() => return,
            };
            let pause = match message {
                // Too much happens: whoever is told asks for everything.
                Some((message, _)) if matches!(message.payload, NetlinkPayload::Overrun(_)) => RETRY,
                Some((message, _)) if matters(&message) => GATHER,
                Some(_) => continue,
                None => {
                    sleep(RETRY).await;
                    match open() {
                        Ok((connection, _, new)) => {
                            tokio::spawn(connection);
                            changes = new;
                        }
                        Err(e) => {
                            warn!(error = %e, "cannot hear of changes of interfaces; tried again");
                            continue;
                        }
                    }
                    GATHER
                }
            };
            let mut end = pin!(sleep(pause));
            // What nobody takes is kept.
            loop {
                tokio::select! {
                    () = &mut end => break,
                    Some(_) = changes.next() => {}
                }
            }
            tell.send_replace(());
        }
    });
    Ok(told)
}

/// Pods come and go, and with them interfaces of ours; a router's full table may, too.
fn matters(message: &NetlinkMessage<Message>) -> bool {
    match &message.payload {
        NetlinkPayload::InnerMessage(Message::NewLink(link) | Message::DelLink(link)) => {
            !name_of(link).is_some_and(is_ours)
        }
        NetlinkPayload::InnerMessage(Message::NewAddress(address) | Message::DelAddress(address)) => {
            address.header.scope == AddressScope::Universe
        }
        NetlinkPayload::InnerMessage(Message::NewRoute(route) | Message::DelRoute(route)) => {
            route.header.destination_prefix_length == 0
        }
        // The kernel had more to say than there was room for.
        _ => true,
    }
}

fn name_of(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::{address::AddressMessage, route::RouteMessage};

    #[test]
    fn what_pods_and_routers_make_wakes_nobody() {
        let says = |message| matters(&NetlinkMessage::from(message));
        let link = |name: &str| {
            let mut link = LinkMessage::default();
            link.attributes.push(LinkAttribute::IfName(name.into()));
            link
        };
        let address = |scope| {
            let mut address = AddressMessage::default();
            address.header.scope = scope;
            Message::NewAddress(address)
        };
        let route = |length| {
            let mut route = RouteMessage::default();
            route.header.destination_prefix_length = length;
            Message::DelRoute(route)
        };
        for message in [Message::NewLink(link("bh0123456789")), address(AddressScope::Link), route(24)] {
            assert!(!says(message.clone()), "{message:?}");
        }
        for message in [Message::DelLink(link("eth0")), address(AddressScope::Universe), route(0)] {
            assert!(says(message.clone()), "{message:?}");
        }
    }
}
