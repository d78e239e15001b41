use super::*;
use bulkhead_api::messages::PortProtocol;
use serde_json::json;

fn parse(value: Value) -> Result<Config, ErrorReply> {
    let input = value.to_string().into_bytes();
    Config::parse(&input, version(&input)?)
}

/// The smallest configuration with this key added.
fn with(key: &str, value: Value) -> Result<Config, ErrorReply> {
    let mut config = json!({"cniVersion": "1.1.0", "name": "bulkhead", "type": "bulkhead-cni"});
    config[key] = value;
    parse(config)
}

fn id(container: &str, ifname: &str) -> AttachmentId {
    AttachmentId { container_id: container.into(), ifname: ifname.into() }
}

#[test]
fn the_smallest_configuration_has_the_documented_defaults() {
    let expected = Config {
        version: Version::V0_4_0,
        socket: "/run/bulkhead/bulkheadd.sock".into(),
        state_dir: "/var/lib/bulkhead".into(),
        deadline: Duration::from_secs(30),
        dns: Dns::default(),
        bandwidth: None,
        port_mappings: vec![],
        prev_result: None,
        valid_attachments: None,
    };
    assert_eq!(parse(json!({"cniVersion": "0.4.0", "name": "b", "type": "bulkhead-cni"})), Ok(expected));
}

#[test]
fn every_key_of_ours_is_read_and_others_are_left_alone() {
    let config = parse(json!({
        "cniVersion": "1.1.0",
        "cniVersions": ["1.0.0", "1.1.0"],
        "name": "bulkhead",
        "type": "bulkhead-cni",
        "socket": "/s",
        "stateDir": "/d",
        "deadlineSeconds": 5,
        "dns": {"nameservers": ["10.96.0.10"], "search": ["svc.cluster.local"], "options": ["ndots:5"]},
        "capabilities": {"bandwidth": true},
        "runtimeConfig": {"bandwidth": {"ingressRate": 1000, "ingressBurst": 100}, "portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""},
            {"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "192.0.2.1"},
        ]},
        "ipam": {},
        "args": {"cni": 7},
    }))
    .unwrap();
    let expected = Config {
        version: Version::V1_1_0,
        socket: "/s".into(),
        state_dir: "/d".into(),
        deadline: Duration::from_secs(5),
        dns: Dns {
            nameservers: vec!["10.96.0.10".into()],
            domain: None,
            search: vec!["svc.cluster.local".into()],
            options: vec!["ndots:5".into()],
        },
        bandwidth: Some(RuntimeBandwidth {
            ingress_rate: 1000,
            ingress_burst: 100,
            egress_rate: 0,
            egress_burst: 0,
        }),
        port_mappings: vec![
            PortMapping {
                host_port: 8080.try_into().unwrap(),
                container_port: 80.try_into().unwrap(),
                protocol: PortProtocol::Tcp,
                host_ip: None,
            },
            PortMapping {
                host_port: 53.try_into().unwrap(),
                container_port: 5353.try_into().unwrap(),
                protocol: PortProtocol::Udp,
                host_ip: Some("192.0.2.1".parse().unwrap()),
            },
        ],
        prev_result: None,
        valid_attachments: None,
    };
    assert_eq!(config, expected);
}

#[test]
fn keys_are_read_with_a_capital_as_containerd_writes_them() {
    let config = parse(json!({
        "cniVersion": "1.1.0", "name": "b", "type": "bulkhead-cni",
        "runtimeConfig": {
            "bandwidth": {"IngressRate": 1000, "IngressBurst": 1, "EgressRate": 7, "EgressBurst": 2},
            "portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}],
        },
    }))
    .unwrap();
    let expected = RuntimeBandwidth { ingress_rate: 1000, ingress_burst: 1, egress_rate: 7, egress_burst: 2 };
    assert_eq!(config.bandwidth, Some(expected));
    assert_eq!(config.port_mappings[0].host_port.get(), 8080);
}

#[test]
fn an_unsupported_version_is_told_which_ones_are() {
    for (config, msg) in [
        (json!({"cniVersion": "0.2.0", "name": 7}), "CNI version 0.2.0 is not supported"),
        (json!({"cniVersion": "2.0.0"}), "CNI version 2.0.0 is not supported"),
        (json!({"name": "b"}), "the configuration names no cniVersion"),
    ] {
        let details = "set cniVersion to one of these: 0.3.1, 0.4.0, 1.0.0, 1.1.0";
        assert_eq!(parse(config), Err(error::new(code::INCOMPATIBLE_VERSION, msg, details)));
    }
    for v in Version::ALL {
        assert_eq!(version(json!({"cniVersion": v.text()}).to_string().as_bytes()), Ok(v));
    }
}

#[test]
fn broken_json_is_told_apart_from_a_wrong_value() {
    for input in ["", "{", "{\"cniVersion\": \"1.1.0\"", "hello"] {
        assert_eq!(version(input.as_bytes()).unwrap_err().code, code::DECODE_FAILURE, "{input}");
    }
    for (key, value) in [
        ("name", json!("")),
        ("socket", json!(7)),
        ("deadlineSeconds", json!(0)),
        ("deadlineSeconds", json!(-1)),
        ("deadlineSeconds", json!(3601)),
        ("dns", json!("10.96.0.10")),
        ("runtimeConfig", json!({"bandwidth": {"ingressRate": "fast"}})),
        ("runtimeConfig", json!({"portMappings": [{"hostPort": 70000, "containerPort": 80}]})),
        (
            "runtimeConfig",
            json!({"portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "icmp"}]}),
        ),
        ("cni.dev/valid-attachments", json!([{"containerID": "c"}])),
    ] {
        let error = with(key, value.clone()).unwrap_err();
        assert_eq!(error.code, code::INVALID_CONFIG, "{key}: {value}: {error}");
    }
}

#[test]
fn gc_knows_no_list_from_an_empty_one() {
    let list = json!([{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "net1"}]);
    let expected = Ok(vec![id("a", "eth0"), id("b", "net1")]);
    assert_eq!(with("cni.dev/valid-attachments", list.clone()).unwrap().valid_attachments(), expected);
    assert_eq!(with("cni.dev/attachments", list).unwrap().valid_attachments(), expected);
    for empty in [json!([]), Value::Null] {
        assert_eq!(with("cni.dev/valid-attachments", empty).unwrap().valid_attachments(), Ok(vec![]));
    }
    let error = with("dns", json!({})).unwrap().valid_attachments().unwrap_err();
    assert_eq!(error.code, code::INVALID_CONFIG);
}

#[test]
fn check_compares_the_addresses_of_its_own_interface() {
    let previous = json!({
        "cniVersion": "0.4.0",
        "interfaces": [
            {"name": "bh1", "mac": "x"},
            {"name": "eth0", "sandbox": "/n"},
            {"name": "eth0"},
            {"name": "net1", "sandbox": "/n"},
        ],
        "ips": [
            {"version": "4", "address": "10.65.0.3/32", "interface": 1},
            {"version": "6", "address": "fd00:65::3/128"},
            {"version": "4", "address": "10.1.0.1/24", "interface": 2},
            {"version": "4", "address": "10.1.0.2/24", "interface": 3},
            {"version": "4", "address": "10.1.0.3/24", "interface": 9},
        ],
    });
    let addresses: Vec<IpNetwork> = vec!["10.65.0.3/32".parse().unwrap(), "fd00:65::3/128".parse().unwrap()];
    assert_eq!(with("prevResult", previous).unwrap().previous_addresses("eth0"), Ok(addresses));
}

#[test]
fn only_check_minds_its_previous_result() {
    for bad in [Value::Null, json!("?"), json!({"ips": [{"address": "10.65.0.300/32"}]})] {
        let config = with("prevResult", bad).unwrap();
        assert_eq!(config.previous_addresses("eth0").unwrap_err().code, code::INVALID_CONFIG);
    }
}
