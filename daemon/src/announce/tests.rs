//! Routes out of objects, and what is admitted of BGP's objects.

use super::*;

fn peer(yaml: &str) -> (String, Sourced<BGPPeerSpec>) {
    let text = format!("{{peerASN: 65020, {yaml}}}");
    let spec = serde_saphyr::from_str(&text).expect("a peer");
    ("leaf".into(), Sourced::new(spec, None))
}

fn configuration(groups: &str) -> Configuration {
    let text = format!("{{asn: 65010, peerGroups: {{{groups}}}}}");
    Some(Sourced::new(serde_saphyr::from_str(&text).expect("a configuration"), None))
}

const GROUPED: &str = "peerAddress: 192.0.2.1, group: leaves";

/// What is in force afterwards, and the refused fields.
fn after(
    before: (&Peers, &Configuration),
    peers: &Peers,
    configuration: Configuration,
) -> (Peers, Configuration, Vec<String>) {
    let (peers, configuration, refused) = admit(before, peers.clone(), configuration);
    let refused = refused
        .into_iter()
        .map(|e| format!("{}: {}", e.object.unwrap_or_default(), e.field.unwrap_or_default()));
    (peers, configuration, refused.collect())
}

#[test]
fn a_group_is_there_before_its_peers_and_goes_after_them() {
    let with = configuration("leaves: {passive: true}");
    let none = (&Peers::new(), &None);
    let grouped = Peers::from([peer(GROUPED)]);
    let (peers, kept, refused) = after(none, &grouped, configuration(""));
    assert_eq!((peers.len(), refused), (0, vec!["BGPPeer/leaf: spec.group".to_string()]));
    assert!(kept.is_some());
    let (peers, kept, refused) = after(none, &grouped, with.clone());
    assert_eq!((peers.len(), refused.len()), (1, 0));
    let in_force = (&peers, &kept);
    let (still, kept, refused) = after(in_force, &grouped, configuration(""));
    assert_eq!((&still, &kept), (&grouped, &with), "the group is still named");
    assert_eq!(refused, ["BGPConfiguration/default: spec.peerGroups"]);
    let alone = Peers::from([peer("peerAddress: 192.0.2.1")]);
    let (peers, kept, refused) = after(in_force, &alone, configuration(""));
    assert_eq!((peers, kept, refused.len()), (alone, configuration(""), 0));
}

fn spec(yaml: &str) -> BGPConfigurationSpec {
    serde_saphyr::from_str(&format!("{{asn: 65010, {yaml}}}")).expect("a configuration")
}

fn partition(yaml: &str) -> Objects {
    let text = format!(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {{name: web}}\n\
         spec: {{policyID: 20, podCIDRs: [10.66.0.0/16], serviceCIDRs: [10.97.0.0/24], bgp: {yaml}}}\n"
    );
    let mut snapshot = bulkhead_policy::files::Snapshot::default();
    for object in bulkhead_policy::files::parse("web.yaml", &text).expect("a partition") {
        snapshot.insert(object);
    }
    snapshot.policy
}

#[test]
fn a_partitions_attributes_are_on_its_blocks() {
    let objects =
        partition("{communities: ['65010:66', '65010:6:6'], localPreference: 200, med: 7, prepend: 1}");
    let block: IpNetwork = "10.66.0.0/26".parse().expect("a block");
    let blocks = BTreeMap::from([(block, "web".to_owned())]);
    let expected = RouteAttributes {
        communities: vec![65010 << 16 | 1, 65010 << 16 | 66],
        large_communities: vec![[65010, 1, 1], [65010, 6, 6]],
        local_pref: Some(200),
        med: Some(7),
        prepend: 1,
        ..RouteAttributes::default()
    };
    assert_eq!(routes(&blocks, &objects, &spec("communities: ['65010:1', '65010:1:1']"))[&block], expected);
}

#[test]
fn a_range_is_announced_whole_from_named_nodes_alone() {
    let objects = partition("{aggregateFrom: [n1], communities: ['65010:66']}");
    let aggregates = |node: &str| aggregates(node, &objects, &spec(""));
    let (range, route) = aggregates("n1").pop_first().expect("the range");
    assert_eq!((range.to_string().as_str(), route.aggregate), ("10.66.0.0/16", true));
    assert_eq!(route.communities, [65010 << 16 | 66]);
    assert_eq!(aggregates("n2"), Routes::new());
    let hidden = partition("{advertise: false, aggregateFrom: [n1]}");
    assert_eq!([&objects, &hidden].map(|of| is_announced(of, "web")), [true, false]);
    assert!(is_announced(&hidden, "gone"), "its blocks are announced without it");
    assert_eq!(super::aggregates("n1", &hidden, &spec("")), Routes::new());
}

#[test]
fn service_ranges_are_announced_where_that_is_asked_for() {
    let ranges = |objects: &Objects, yaml: &str| -> Vec<String> {
        services(objects, &spec(yaml)).keys().map(ToString::to_string).collect()
    };
    assert_eq!(ranges(&partition("{}"), ""), [""; 0]);
    let both = ranges(&partition("{advertiseServices: true}"), "advertiseServiceCIDRs: [10.96.0.0/16]");
    assert_eq!(both, ["10.96.0.0/16", "10.97.0.0/24"]);
    let tagged = spec(
        "communities: ['65010:1'], serviceCommunities: ['65010:2'], advertiseServiceCIDRs: [10.96.0.0/16]",
    );
    let route = services(&partition("{}"), &tagged).into_values().next().expect("the range");
    assert_eq!(route.communities, [65010 << 16 | 2]);
    for (range, refused) in [("0.0.0.0/0", true), ("10.96.0.1/16", true), ("10.96.0.0/16", false)] {
        for field in ["advertiseServiceCIDRs", "advertiseExternalIPs", "advertiseLoadBalancerIPs"] {
            let object = Sourced::new(spec(&format!("{field}: [{range}]")), None);
            let told = check_configuration(&object).map(|error| error.field.unwrap_or_default());
            assert_eq!(told, refused.then(|| format!("spec.{field}[0]")), "{range}");
        }
    }
}

#[test]
fn a_peer_has_an_address_or_a_range_or_an_interface() {
    for (yaml, fine) in [
        ("peerAddress: 192.0.2.1", true),
        ("peerRange: 192.0.2.0/24", true),
        ("peerAddress: 192.0.2.1, peerRange: 192.0.2.0/24", false),
        ("interface: eth0.100", true),
        ("interface: eth0, peerAddress: 192.0.2.1", false),
        ("interface: eth0/../all", false),
        ("interface: ''", false),
        ("interface: sixteencharacter", false),
        ("families: [IPv4]", false),
        ("peerAddress: 192.0.2.1, session: {localASN: 0}", false),
    ] {
        assert_eq!(check(&peer(yaml).1.spec).is_ok(), fine, "{yaml}");
    }
}

#[test]
fn a_peer_without_the_password_it_needs_is_an_error_and_no_peer() {
    let objects = Peers::from([peer(GROUPED)]);
    let configuration = configuration("leaves: {passwordFile: /secret, passive: true}").expect("one").spec;
    let made = |password: Result<Password, String>| {
        let peers = peers("n1", None, Sources::default(), &objects, &configuration, |session| {
            assert_eq!(session.password_file.as_deref(), Some("/secret"));
            password.clone().map(Some).map_err(|message| ("passwordFile".into(), message))
        });
        peers.into_values().next().expect("one peer")
    };
    let password = Password::new("correct-horse").expect("a password");
    let peer = made(Ok(password.clone())).expect("a peer");
    assert_eq!((peer.password, peer.passive), (Some(password), true));
    let refused = made(Err("no such file".into())).expect_err("no password");
    assert_eq!(refused.field.as_deref(), Some("spec.session.passwordFile"));
}

#[test]
fn a_peer_is_every_nodes_or_one_nodes_or_those_with_its_labels() {
    let named = |(name, chosen): (&str, &str)| {
        let (_, spec) = peer(&format!("peerAddress: 192.0.2.1{chosen}"));
        (name.to_owned(), spec)
    };
    let objects: Peers = [
        ("every", ""),
        ("one", ", node: n1"),
        ("rack", ", nodeSelector: {matchLabels: {rack: '1'}}"),
        ("one-in-rack", ", node: n1, nodeSelector: {matchLabels: {rack: '1'}}"),
    ]
    .map(named)
    .into();
    let configuration = configuration("").expect("one").spec;
    let of = |node: &str, rack: Option<&str>| {
        let labels = rack.map(|rack| ("rack".to_owned(), rack.to_owned())).into_iter().collect();
        let info = rack.map(|_| NodeInfo { labels, ..NodeInfo::default() });
        let peers = peers(node, info.as_ref(), Sources::default(), &objects, &configuration, |_| Ok(None));
        peers.into_keys().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(of("n1", Some("1")), "every one one-in-rack rack");
    assert_eq!(of("n1", Some("2")), "every one");
    assert_eq!(of("n2", Some("1")), "every rack");
    assert_eq!(of("n2", None), "every", "nothing is known of the node");
}
