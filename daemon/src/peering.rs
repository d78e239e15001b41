//! What a session with a router is to be like: from the settings of its object and group to those of the speaker. Pure.

use bulkhead_api::objects::{
    BGPAction, BGPBfd, BGPMaxPrefixes, BGPPrefixRange, BGPRule, BGPSession, IpNetwork, parse_community,
    parse_large_community,
};
use bulkhead_bgp::{
    Password, PeerConfig, Remote, Ttl, bfd,
    filter::{Changes, Community, Filter, PrefixRange, Rule},
    neighbour::PrefixLimit,
};
use std::time::Duration;

/// A field of a session, and why it cannot be as it is.
pub type Refusal = (String, String);

/// `password`: what the session's file or Secret says.
pub fn with_session(
    peer: PeerConfig,
    session: &BGPSession,
    password: Option<Password>,
) -> Result<PeerConfig, Refusal> {
    check(session)?;
    let ttl = match (session.ttl_security_hops, session.multihop_ttl) {
        (Some(hops), _) => Ttl::Security(hops),
        (None, Some(ttl)) => Ttl::Fixed(ttl),
        (None, None) => Ttl::System,
    };
    Ok(PeerConfig {
        local_asn: session.local_asn,
        remove_private_as: session.remove_private_as.unwrap_or(false),
        local_address: session.source_address.or(peer.local_address),
        passive: session.passive.unwrap_or(false),
        ttl,
        password,
        send_hold_time: session.send_hold_time_seconds.unwrap_or(0),
        add_path: session.add_path.unwrap_or(false),
        extended_next_hop: session.extended_next_hop.unwrap_or(false),
        allow_own_as: session.allow_own_as.unwrap_or(0),
        prefix_limit: session.max_prefixes.as_ref().map(limit),
        shutdown: session.shutdown.clone(),
        bfd: session.bfd.as_ref().filter(|bfd| bfd.enabled).map(bfd_settings),
        export: filter("export", session.export.as_deref(), true)?,
        import: filter("import", session.import.as_deref(), false)?,
        ..peer
    })
}

fn check(session: &BGPSession) -> Result<(), Refusal> {
    let refuse = |field: &str, message: &str| Err((field.to_owned(), message.to_owned()));
    if session.local_asn == Some(0) {
        return refuse("localASN", "0 is reserved (RFC 7607): give an AS number, or leave it out");
    }
    if session.ttl_security_hops.is_some() && session.multihop_ttl.is_some() {
        return refuse("multihopTTL", "ttlSecurityHops says the TTL already: set one of the two");
    }
    if matches!(session.ttl_security_hops, Some(0 | 255)) {
        return refuse("ttlSecurityHops", "must be 1 (the router is on the link) to 254");
    }
    if session.password_file.is_some() && session.password_secret.is_some() {
        return refuse("passwordSecret", "passwordFile says the password already: set one of the two");
    }
    if session.multihop_ttl == Some(0) {
        return refuse("multihopTTL", "must be 1 to 255");
    }
    if let Some(bfd) = &session.bfd {
        let fits = |milliseconds: u32| (10..=60_000).contains(&milliseconds);
        if !fits(bfd.min_transmit_milliseconds) {
            return refuse("bfd.minTransmitMilliseconds", "must be 10 to 60000");
        }
        if !fits(bfd.min_receive_milliseconds) {
            return refuse("bfd.minReceiveMilliseconds", "must be 10 to 60000");
        }
        if bfd.multiplier == 0 {
            return refuse("bfd.multiplier", "must be 1 to 255");
        }
    }
    Ok(())
}

fn bfd_settings(bfd: &BGPBfd) -> bfd::Settings {
    let interval = |milliseconds: u32| Duration::from_millis(milliseconds.into());
    bfd::Settings {
        desired_min_tx: interval(bfd.min_transmit_milliseconds),
        required_min_rx: interval(bfd.min_receive_milliseconds),
        detect_mult: bfd.multiplier,
    }
}

/// What depends on whom the session is with, once all of it is known.
pub fn check_remote(peer: &PeerConfig) -> Result<(), Refusal> {
    let refuse = |field: &str, message: &str| Err((field.to_owned(), message.to_owned()));
    if matches!(peer.remote, Remote::Interface(_)) {
        if peer.local_address.is_some() {
            return refuse(
                "sourceAddress",
                "with an interface it is the link-local address of that interface",
            );
        }
        if matches!(peer.ttl, Ttl::Fixed(_)) {
            return refuse("multihopTTL", "the router of an interface is on the link");
        }
    }
    if peer.bfd.is_some() && peer.local_address.is_none() && peer.is_far() {
        return refuse("bfd", "needs sourceAddress for a router that is several hops away");
    }
    Ok(())
}

fn limit(max: &BGPMaxPrefixes) -> PrefixLimit {
    let retry = max.restart_seconds.map(|seconds| Duration::from_secs(seconds.into()));
    PrefixLimit { max: max.limit, warn_at: max.warn_percent, retry }
}

/// `otherwise`: what becomes of what no rule matches.
fn filter(field: &str, rules: Option<&[BGPRule]>, otherwise: bool) -> Result<Filter, Refusal> {
    let read = |(index, object): (usize, &BGPRule)| rule(&format!("{field}[{index}]"), object);
    let rules = rules.unwrap_or_default().iter().enumerate().map(read);
    Ok(Filter { rules: rules.collect::<Result<_, _>>()?, otherwise })
}

fn rule(field: &str, object: &BGPRule) -> Result<Rule, Refusal> {
    let ranges = object.prefixes.iter().enumerate();
    let ranges = ranges.map(|(index, object)| range(&format!("{field}.prefixes[{index}]"), object));
    let changes = &object.set;
    Ok(Rule {
        prefixes: ranges.collect::<Result<_, _>>()?,
        communities: communities(&format!("{field}.communities"), &object.communities)?,
        path_has: object.path_asns.clone(),
        accept: object.action == BGPAction::Accept,
        set: Changes {
            communities: communities(&format!("{field}.set.communities"), &changes.communities)?,
            local_pref: changes.local_preference,
            med: changes.med,
            prepend: changes.prepend,
        },
    })
}

fn range(field: &str, object: &BGPPrefixRange) -> Result<PrefixRange, Refusal> {
    let network = object.cidr;
    let longest = if network.is_ipv4() { 32 } else { 128 };
    let min = object.min_length.unwrap_or(network.prefix());
    let max = object.max_length.unwrap_or(longest);
    if !(network.prefix() <= min && min <= max && max <= longest) {
        let message = format!(
            "lengths {min} to {max} do not fit {network}: they must lie between {} and {longest}",
            network.prefix()
        );
        return Err((field.to_owned(), message));
    }
    let network = IpNetwork::new(network.network(), network.prefix()).unwrap_or(network);
    Ok(PrefixRange { network, min, max })
}

fn communities(field: &str, texts: &[String]) -> Result<Vec<Community>, Refusal> {
    let read = |(index, text): (usize, &String)| {
        community(text).ok_or_else(|| (format!("{field}[{index}]"), no_community(text)))
    };
    texts.iter().enumerate().map(read).collect()
}

pub(crate) fn no_community(text: &str) -> String {
    format!("`{text}` is not a community: write 65000:100, or a large one as 65000:1:2")
}

/// RFC 1997 or RFC 8092, as people write it.
pub(crate) fn community(text: &str) -> Option<Community> {
    match parse_community(text) {
        Some((high, low)) => Some(Community::Plain(u32::from(high) << 16 | u32::from(low))),
        None => parse_large_community(text).map(Community::Large),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: &str) -> Result<PeerConfig, Refusal> {
        let session: BGPSession = serde_saphyr::from_str(yaml).expect("a session");
        let remote = Remote::Address([192, 0, 2, 1].into());
        with_session(PeerConfig::new("leaf", remote, 65020), &session, None)
    }

    #[test]
    fn what_is_not_said_leaves_the_peer_as_it_was() {
        let remote = Remote::Address([192, 0, 2, 1].into());
        assert_eq!(read("{}"), Ok(PeerConfig::new("leaf", remote, 65020)));
    }

    #[test]
    fn bfd_is_kept_with_defaults_and_a_peer_can_leave_its_groups() {
        let bfd = |yaml: &str| read(yaml).expect("a peer").bfd;
        assert_eq!(bfd("{bfd: {}}"), Some(bfd::Settings::DEFAULT));
        let fast = bfd("{bfd: {minTransmitMilliseconds: 50, minReceiveMilliseconds: 60, multiplier: 5}}");
        let millis = Duration::from_millis;
        let expected =
            bfd::Settings { desired_min_tx: millis(50), required_min_rx: millis(60), detect_mult: 5 };
        assert_eq!(fast, Some(expected));
        assert_eq!(bfd("{bfd: {enabled: false}}"), None);
    }

    #[test]
    fn bfd_is_over_one_hop_unless_the_router_is_farther_away() {
        let hops = |yaml: &str| {
            let (key, _) = read(yaml).expect("a peer").bfd_session().expect("a session");
            key.multihop
        };
        assert_eq!(hops("{bfd: {}, ttlSecurityHops: 1}"), None);
        assert_eq!(hops("{bfd: {}, ttlSecurityHops: 3}"), Some(253));
        assert_eq!(hops("{bfd: {}, multihopTTL: 9}"), Some(1));
        assert_eq!(read("{bfd: {}, shutdown: moving}").expect("a peer").bfd_session(), None);
    }

    #[test]
    fn bfd_that_cannot_be_is_refused() {
        let far = read("{bfd: {}, multihopTTL: 9}").expect("a peer");
        assert!(check_remote(&far).is_err(), "the neighbour knows us by an address that nobody said");
        let source = Some([192, 0, 2, 9].into());
        assert_eq!(check_remote(&PeerConfig { local_address: source, ..far.clone() }), Ok(()));
        let interface = Remote::Interface("eth0".into());
        let unnumbered = PeerConfig { remote: interface, ttl: Ttl::System, ..far.clone() };
        let field = |peer: &PeerConfig| check_remote(peer).map_err(|(field, _)| field);
        assert_eq!(field(&unnumbered), Ok(()), "it is on the link");
        let without = PeerConfig { bfd: None, ..unnumbered };
        let from = PeerConfig { local_address: source, ..without.clone() };
        assert_eq!(field(&from), Err("sourceAddress".into()));
        assert_eq!(field(&PeerConfig { ttl: Ttl::Fixed(9), ..without }), Err("multihopTTL".into()));
        let range = Remote::Range("192.0.2.0/24".parse().expect("a range"));
        let members = PeerConfig { remote: range, ttl: Ttl::System, ..far };
        assert_eq!(check_remote(&members), Ok(()), "of a range each is watched once it has connected");
        assert!(check_remote(&PeerConfig { ttl: Ttl::Fixed(9), ..members }).is_err());
    }

    #[test]
    fn every_setting_reaches_the_speaker() {
        let peer = read(
            "{localASN: 64496, removePrivateAS: true, sourceAddress: 192.0.2.9, passive: true, ttlSecurityHops: 1, \
             sendHoldTimeSeconds: 60, addPath: true, extendedNextHop: true, allowOwnAS: 1, shutdown: moving, \
             maxPrefixes: {limit: 10, restartSeconds: 30}, export: [{action: Reject, prefixes: [{cidr: 10.1.0.0/16, \
             maxLength: 24}]}, {action: Accept, communities: ['65010:1', '65010:1:2'], pathASNs: [65030], set: {communities: ['65010:9'], \
             med: 5, localPreference: 200, prepend: 2}}], import: [{action: Accept, set: {localPreference: 50}}]}",
        )
        .expect("a peer");
        let network = "10.1.0.0/16".parse().expect("a network");
        let rejecting = Rule { prefixes: vec![PrefixRange { network, min: 16, max: 24 }], ..Rule::default() };
        let set = Changes {
            communities: vec![Community::Plain(65010 << 16 | 9)],
            local_pref: Some(200),
            med: Some(5),
            prepend: 2,
        };
        let matched = vec![Community::Plain(65010 << 16 | 1), Community::Large([65010, 1, 2])];
        let accepting =
            Rule { communities: matched, path_has: vec![65030], accept: true, set, ..Rule::default() };
        let preferred = Changes { local_pref: Some(50), ..Changes::default() };
        let importing = Rule { accept: true, set: preferred, ..Rule::default() };
        let remote = Remote::Address([192, 0, 2, 1].into());
        let expected = PeerConfig {
            local_asn: Some(64496),
            remove_private_as: true,
            local_address: Some([192, 0, 2, 9].into()),
            passive: true,
            ttl: Ttl::Security(1),
            send_hold_time: 60,
            add_path: true,
            extended_next_hop: true,
            allow_own_as: 1,
            shutdown: Some("moving".into()),
            prefix_limit: Some(PrefixLimit { max: 10, warn_at: 75, retry: Some(Duration::from_secs(30)) }),
            export: Filter { rules: vec![rejecting, accepting], otherwise: true },
            import: Filter { rules: vec![importing], otherwise: false },
            ..PeerConfig::new("leaf", remote, 65020)
        };
        assert_eq!(peer, expected);
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_field() {
        for (yaml, field) in [
            ("{localASN: 0}", "localASN"),
            ("{ttlSecurityHops: 0}", "ttlSecurityHops"),
            ("{passwordFile: /x, passwordSecret: {key: leaf}}", "passwordSecret"),
            ("{bfd: {minTransmitMilliseconds: 9}}", "bfd.minTransmitMilliseconds"),
            ("{bfd: {minReceiveMilliseconds: 60001}}", "bfd.minReceiveMilliseconds"),
            ("{bfd: {multiplier: 0}}", "bfd.multiplier"),
            ("{ttlSecurityHops: 1, multihopTTL: 9}", "multihopTTL"),
            ("{export: [{action: Accept, communities: ['65536:1']}]}", "export[0].communities[0]"),
            ("{import: [{action: Accept, communities: ['65536:1']}]}", "import[0].communities[0]"),
            ("{export: [{action: Accept, set: {communities: [x]}}]}", "export[0].set.communities[0]"),
            (
                "{export: [{action: Accept, prefixes: [{cidr: 10.0.0.0/8, minLength: 7}]}]}",
                "export[0].prefixes[0]",
            ),
            (
                "{export: [{action: Accept, prefixes: [{cidr: 10.0.0.0/8, maxLength: 33}]}]}",
                "export[0].prefixes[0]",
            ),
        ] {
            let refused = read(yaml).map(|_| ()).expect_err(yaml);
            assert_eq!(refused.0, field, "{yaml}");
        }
    }

    #[test]
    fn a_peers_own_setting_comes_before_its_groups() {
        let session = |yaml: &str| serde_saphyr::from_str::<BGPSession>(yaml).expect("a session");
        let merged =
            session("{passive: false, addPath: true}").or(&session("{passive: true, localASN: 64496}"));
        assert_eq!(merged, session("{passive: false, addPath: true, localASN: 64496}"));
        let merged = session("{passwordSecret: {key: leaf}}").or(&session("{passwordFile: /x}"));
        assert_eq!(merged, session("{passwordSecret: {name: bulkhead-bgp, key: leaf}}"));
    }
}
