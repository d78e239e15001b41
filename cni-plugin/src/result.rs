//! Results in the caller's version of the specification.

use crate::config::{Dns, Version};
use bulkhead_api::messages::{Attachment, Interface};
use ipnetwork::IpNetwork;
use serde_json::{Value, json};
use std::net::IpAddr;

/// Index of the pod's interface in `interfaces`; the host's is 0.
const POD: usize = 1;

pub fn versions() -> Value {
    json!({
        "cniVersion": Version::NEWEST.text(),
        "supportedVersions": Version::ALL.map(Version::text),
    })
}

/// Specification, section "ADD Success".
pub fn added(attachment: &Attachment, netns: &str, dns: &Dns, version: Version) -> Value {
    json!({
        "cniVersion": version.text(),
        "interfaces": [
            interface(&attachment.host_interface, None, version),
            interface(&attachment.pod_interface, Some(netns), version),
        ],
        "ips": attachment.addresses.iter().map(|a| ip(*a, gateway(attachment, *a), version)).collect::<Vec<_>>(),
        "routes": attachment
            .routes
            .iter()
            .map(|r| json!({"dst": r.dst, "gw": r.gateway}))
            .collect::<Vec<_>>(),
        "dns": dns,
    })
}

fn interface(interface: &Interface, sandbox: Option<&str>, version: Version) -> Value {
    let mut value = json!({"name": interface.name, "mac": interface.mac});
    if let Some(netns) = sandbox {
        value["sandbox"] = json!(netns);
    }
    if version >= Version::V1_1_0 {
        value["mtu"] = json!(interface.mtu);
    }
    value
}

fn ip(address: IpNetwork, gateway: Option<IpAddr>, version: Version) -> Value {
    let mut value = json!({"address": address, "interface": POD});
    if let Some(gateway) = gateway {
        value["gateway"] = json!(gateway);
    }
    if version < Version::V1_0_0 {
        value["version"] = json!(if address.is_ipv4() { "4" } else { "6" });
    }
    value
}

/// The way out of the pod for this address's family.
fn gateway(attachment: &Attachment, address: IpNetwork) -> Option<IpAddr> {
    let same = |dst: &IpNetwork| dst.is_ipv4() == address.is_ipv4();
    attachment
        .routes
        .iter()
        .find(|r| same(&r.dst) && r.dst.prefix() == 0)
        .map(|r| r.gateway)
        .filter(|gateway| gateway.is_ipv4() == address.is_ipv4())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_api::messages::PodRoute;

    fn attachment() -> Attachment {
        let interface = |name: &str, mac: &str| Interface { name: name.into(), mac: mac.into(), mtu: 1500 };
        let route = |dst: &str, gateway: &str| PodRoute {
            dst: dst.parse().unwrap(),
            gateway: gateway.parse().unwrap(),
        };
        Attachment {
            host_interface: interface("bh0a1b2c3d", "ee:ee:ee:ee:ee:ee"),
            pod_interface: interface("eth0", "0a:58:0a:41:00:03"),
            addresses: vec!["10.65.0.3/32".parse().unwrap(), "fd00:65::3/128".parse().unwrap()],
            routes: vec![
                route("10.0.0.0/8", "169.254.1.9"),
                route("0.0.0.0/0", "169.254.1.1"),
                route("::/0", "fe80::1"),
            ],
        }
    }

    fn added_in(version: Version) -> Value {
        let dns = Dns { nameservers: vec!["10.96.0.10".into()], ..Dns::default() };
        added(&attachment(), "/var/run/netns/a", &dns, version)
    }

    #[test]
    fn version_1_1_has_the_mtu() {
        let expected = json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "bh0a1b2c3d", "mac": "ee:ee:ee:ee:ee:ee", "mtu": 1500},
                {"name": "eth0", "mac": "0a:58:0a:41:00:03", "mtu": 1500, "sandbox": "/var/run/netns/a"},
            ],
            "ips": [
                {"address": "10.65.0.3/32", "gateway": "169.254.1.1", "interface": 1},
                {"address": "fd00:65::3/128", "gateway": "fe80::1", "interface": 1},
            ],
            "routes": [
                {"dst": "10.0.0.0/8", "gw": "169.254.1.9"},
                {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
                {"dst": "::/0", "gw": "fe80::1"},
            ],
            "dns": {"nameservers": ["10.96.0.10"]},
        });
        assert_eq!(added_in(Version::V1_1_0), expected);
    }

    #[test]
    fn version_1_0_has_neither_mtu_nor_family() {
        let expected = json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                {"name": "bh0a1b2c3d", "mac": "ee:ee:ee:ee:ee:ee"},
                {"name": "eth0", "mac": "0a:58:0a:41:00:03", "sandbox": "/var/run/netns/a"},
            ],
            "ips": [
                {"address": "10.65.0.3/32", "gateway": "169.254.1.1", "interface": 1},
                {"address": "fd00:65::3/128", "gateway": "fe80::1", "interface": 1},
            ],
            "routes": [
                {"dst": "10.0.0.0/8", "gw": "169.254.1.9"},
                {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
                {"dst": "::/0", "gw": "fe80::1"},
            ],
            "dns": {"nameservers": ["10.96.0.10"]},
        });
        assert_eq!(added_in(Version::V1_0_0), expected);
    }

    #[test]
    fn versions_before_1_0_have_the_family() {
        for version in [Version::V0_3_1, Version::V0_4_0] {
            let expected = json!({
                "cniVersion": version.text(),
                "interfaces": [
                    {"name": "bh0a1b2c3d", "mac": "ee:ee:ee:ee:ee:ee"},
                    {"name": "eth0", "mac": "0a:58:0a:41:00:03", "sandbox": "/var/run/netns/a"},
                ],
                "ips": [
                    {"version": "4", "address": "10.65.0.3/32", "gateway": "169.254.1.1", "interface": 1},
                    {"version": "6", "address": "fd00:65::3/128", "gateway": "fe80::1", "interface": 1},
                ],
                "routes": [
                    {"dst": "10.0.0.0/8", "gw": "169.254.1.9"},
                    {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
                    {"dst": "::/0", "gw": "fe80::1"},
                ],
                "dns": {"nameservers": ["10.96.0.10"]},
            });
            assert_eq!(added_in(version), expected);
        }
    }

    #[test]
    fn a_gateway_of_the_other_family_or_none_is_left_out() {
        let mut attachment = attachment();
        attachment.routes.retain(|r| r.dst.prefix() == 0 && r.dst.is_ipv4());
        attachment.routes[0].gateway = "fe80::1".parse().unwrap();
        let value = added(&attachment, "/n", &Dns::default(), Version::V1_1_0);
        assert_eq!(
            value["ips"],
            json!([
                {"address": "10.65.0.3/32", "interface": 1},
                {"address": "fd00:65::3/128", "interface": 1},
            ])
        );
        assert_eq!(value["routes"], json!([{"dst": "0.0.0.0/0", "gw": "fe80::1"}]));
        assert_eq!(value["dns"], json!({}));
    }
}
