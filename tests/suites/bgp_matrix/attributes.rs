//! What stands in the router's table of our routes, and what we make of its own.

use crate::{Row, all};
use bulkhead_bgp::filter::{Changes, Community, Filter, Rule};
use bulkhead_bgp::{PeerConfig, RouteAttributes};
use bulkhead_lab::bgp::site::{DEADLINE, NODE_AS, ROUTER, ROUTER_AS, ROUTER6, Site, router, speaker_config};
use bulkhead_lab::bgp::{Kind, Setup, THEIRS, THEIRS6};
use bulkhead_lab::{Result, until};
use std::collections::BTreeMap;
use std::net::IpAddr;

pub const ROWS: &[Row] = &[
    all("communities, extended and large, and MED: ours", "1997, 4360, 8092", ours),
    all("communities, extended and large, and MED: theirs", "1997, 4360, 8092", theirs),
    all("an export filter adds communities and prepends", "", export_filter),
    all("graceful shutdown is the last choice inside an AS", "8326", graceful_shutdown),
];

const BLOCK: &str = "10.64.0.0/26";

fn tagged() -> RouteAttributes {
    RouteAttributes {
        communities: vec![(NODE_AS << 16) | 100, (NODE_AS << 16) | 7],
        extended_communities: vec![0x0002_0000_0000_0009 | u64::from(NODE_AS) << 32],
        large_communities: vec![[4_200_000_000, 1, 2]],
        med: Some(50),
        local_pref: None,
        prepend: 0,
        exclusive: false,
        aggregate: false,
    }
}

fn announced(site: &Site, attributes: RouteAttributes, peer: PeerConfig) -> bulkhead_lab::bgp::site::Running {
    let node = site.speaker(speaker_config(false));
    node.speaker.announce(BTreeMap::from([(BLOCK.parse().unwrap(), attributes)]));
    node.speaker.set_peers(vec![peer]);
    node
}

fn ours(site: &Site, kind: Kind) -> Result<()> {
    let there = kind.start(site, &Setup::default())?;
    let _node = announced(site, tagged(), router());
    let seen = there.wait_seen(BLOCK)?;
    let set = |words: &[&str]| words.iter().map(|word| word.to_string()).collect();
    assert_eq!(seen.communities, set(&["65010:100", "65010:7"]), "{seen:?}");
    assert_eq!(seen.targets, set(&["65010:9"]), "{seen:?}");
    assert_eq!(seen.large, set(&["4200000000:1:2"]), "{seen:?}");
    assert_eq!((seen.med, seen.as_path), (Some(50), vec![NODE_AS]));
    Ok(())
}

fn theirs(site: &Site, kind: Kind) -> Result<()> {
    let _there = kind.start(site, &Setup::default())?;
    let node = site.speaker(speaker_config(false));
    node.speaker.set_peers(vec![router()]);
    for (prefix, next_hop) in [(THEIRS, ROUTER), (THEIRS6, ROUTER6)] {
        let seen = until(&format!("we have {prefix}"), DEADLINE, || {
            Ok(node.received().into_iter().find(|route| route.prefix.to_string() == prefix))
        })?;
        assert_eq!(seen.next_hop, next_hop.parse::<IpAddr>().unwrap(), "{seen:?}");
        assert_eq!((seen.as_path.as_slice(), seen.med), (&[ROUTER_AS][..], Some(30)), "{seen:?}");
        assert_eq!(seen.communities, [(ROUTER_AS << 16) | 7], "{seen:?}");
        assert_eq!(seen.large_communities, [[ROUTER_AS, 1, 2]], "{seen:?}");
        let target = 0x0002_0000_0000_0009 | u64::from(ROUTER_AS) << 32;
        assert_eq!(seen.extended_communities, [target], "{seen:?}");
        assert!(!seen.accepted, "no import filter: nothing is learned");
    }
    Ok(())
}

fn export_filter(site: &Site, kind: Kind) -> Result<()> {
    let there = kind.start(site, &Setup::default())?;
    let set = Changes {
        communities: vec![Community::Plain((NODE_AS << 16) | 8)],
        prepend: 2,
        ..Changes::default()
    };
    let rule = Rule { accept: true, set, ..Rule::default() };
    let export = Filter { rules: vec![rule], otherwise: false };
    let node = announced(site, RouteAttributes::default(), PeerConfig { export, ..router() });
    let seen = there.wait_seen(BLOCK)?;
    assert_eq!(seen.as_path, [NODE_AS; 3]);
    assert!(seen.communities.contains("65010:8"), "{seen:?}");
    let since = node.peer().since;
    node.speaker.set_peers(vec![PeerConfig { export: Filter::REJECT, ..router() }]);
    there.wait_gone(BLOCK)?;
    assert!(there.established()? && node.peer().since >= since, "the session went on");
    Ok(())
}

fn graceful_shutdown(site: &Site, kind: Kind) -> Result<()> {
    let there = kind.start(site, &Setup { node_as: ROUTER_AS, ..Setup::default() })?;
    let leaving = RouteAttributes {
        communities: vec![bulkhead_bgp::export::GRACEFUL_SHUTDOWN],
        ..RouteAttributes::default()
    };
    let _node = announced(site, leaving, PeerConfig { local_asn: Some(ROUTER_AS), ..router() });
    let seen = there.wait_seen(BLOCK)?;
    assert_eq!(seen.local_pref, Some(0), "{seen:?}");
    let names = ["65535:0", "graceful-shutdown", "gracefulShutdown"];
    assert!(names.iter().any(|name| seen.communities.contains(*name)), "{seen:?}");
    Ok(())
}
