//! `status`, `endpoints`, `partitions`, `drops`.

use super::{list, or_dash, rule};
use crate::{
    paint::{Colour, Paint},
    table::{self, Cell, number, text},
    units,
};
use bulkhead_api::messages::{DropInfo, EndpointInfo, PartitionInfo, Status, UplinkInfo};
use std::collections::BTreeSet;

/// `now`: Unix time, seconds.
pub fn status(status: &Status, now: u64, paint: Paint) -> String {
    let age = units::duration(now.saturating_sub(status.generation_since));
    let objects = match status.errors.len() {
        0 => text("all in force").colour(Colour::Good),
        1 => text("1 problem; what was in force before still is").colour(Colour::Warning),
        n => text(format!("{n} problems; what was in force before still is")).colour(Colour::Warning),
    };
    let held = match status.held {
        None => text("followed"),
        Some(generation) => {
            text(format!("held: rolled back to generation {generation}; `bulkhead policy release` ends it"))
                .colour(Colour::Warning)
        }
    };
    let mut rows: Vec<(&str, Cell)> = vec![
        ("node", text(&status.node)),
        ("version", text(&status.version)),
        ("generation", text(format!("{}, in force for {age}", status.generation))),
        ("source", held),
        ("last change", text(format!("enforced {} ms after it was made", status.last_change_millis))),
        ("endpoints", text(status.endpoints)),
        ("connections", text(status.connections)),
        ("bandwidth", text(&status.bandwidth)),
        ("uplinks", text(uplinks(&status.uplinks))),
        ("objects", objects),
    ];
    let draining = super::draining(&status.draining);
    rows.extend(draining.map(|words| ("draining", text(words).colour(Colour::Warning))));
    let rows = rows.into_iter().map(|(name, value)| vec![text(name).colour(Colour::Faint), value]).collect();
    let mut out = table::columns(rows, "", paint);
    for error in &status.errors {
        out += &format!("{} {error}\n", paint.apply(Colour::Warning, "⚠"));
    }
    out
}

fn uplinks(uplinks: &[UplinkInfo]) -> String {
    let each = |u: &UplinkInfo| format!("{} ({}, MTU {})", u.name, u.chosen_by, u.mtu);
    list(&uplinks.iter().map(each).collect::<Vec<_>>())
}

pub fn endpoints(endpoints: &[EndpointInfo], paint: Paint) -> String {
    if endpoints.is_empty() {
        return "no pods on this node\n".to_string();
    }
    let rate = |rate: Option<u64>| number(or_dash(rate.map(units::rate)));
    let row = |e: &EndpointInfo| {
        vec![
            text(format!("{}/{}", e.pod.namespace, e.pod.name)),
            text(&e.partition),
            text(list(&e.addresses)),
            text(&e.host_interface),
            number(e.identity),
            text(or_dash(e.bandwidth_class.as_deref())),
            rate(e.ingress_rate),
            rate(e.egress_rate),
        ]
    };
    let header = ["POD", "PARTITION", "ADDRESSES", "INTERFACE", "IDENTITY", "CLASS", "INGRESS", "EGRESS"];
    table::with_header(&header, endpoints.iter().map(row).collect(), paint)
}

pub fn partitions(partitions: &[PartitionInfo], paint: Paint) -> String {
    if partitions.is_empty() {
        return "no partitions\n".to_string();
    }
    let row = |p: &PartitionInfo| {
        let strays = if p.strays > 0 { Colour::Warning } else { Colour::None };
        vec![
            text(&p.name),
            number(p.policy_id),
            text(&p.isolation),
            text(list(&p.namespaces)),
            text(list(&p.pod_cidrs)),
            text(list(&p.blocks)),
            number(p.endpoints),
            number(p.strays).colour(strays),
        ]
    };
    let header = ["PARTITION", "ID", "ISOLATION", "NAMESPACES", "RANGES", "BLOCKS HERE", "PODS", "STRAYS"];
    table::with_header(&header, partitions.iter().map(row).collect(), paint)
}

pub fn drops(drops: &[DropInfo], paint: Paint) -> String {
    if drops.is_empty() {
        return "no packet was dropped\n".to_string();
    }
    let row = |d: &DropInfo| {
        vec![
            text(&d.reason),
            text(&d.direction),
            text(or_dash(d.partition.as_deref())),
            number(d.packets),
            number(units::bytes(d.bytes)),
            text(or_dash(d.rule.as_ref().map(rule))),
        ]
    };
    let header = ["REASON", "DIRECTION", "PARTITION", "PACKETS", "BYTES", "RULE"];
    let advice: BTreeSet<_> = drops.iter().filter_map(|d| Some((&d.reason, d.advice.as_ref()?))).collect();
    let advice = advice.iter().map(|(reason, advice)| format!("\n{reason}: {advice}\n"));
    table::with_header(&header, drops.iter().map(row).collect(), paint) + &advice.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paint::{COLOURED, PLAIN};
    use bulkhead_api::messages::{AttachmentId, ObjectError, PodRef, RuleInfo};

    fn uplink(name: &str, chosen_by: &str) -> UplinkInfo {
        UplinkInfo { name: name.into(), mtu: 1500, chosen_by: chosen_by.into() }
    }

    fn a_status(errors: Vec<ObjectError>) -> Status {
        Status {
            node: "node1".into(),
            version: "0.1.0".into(),
            generation: 12,
            generation_since: 1_000,
            last_change_millis: 7,
            endpoints: 8,
            connections: 1204,
            held: None,
            draining: vec![],
            bandwidth: "tbf".into(),
            uplinks: vec![uplink("eth0", "default route"), uplink("bond0", "10.1.0.5 in 10.0.0.0/8")],
            errors,
        }
    }

    fn refused() -> ObjectError {
        ObjectError {
            file: Some("web.yaml:12".into()),
            object: Some("Partition/web".into()),
            field: Some("spec.ingress[0].ports[1].endPort".into()),
            message: "80 is below port 90".into(),
        }
    }

    #[test]
    fn status_is_a_list_of_what_is_in_force() {
        assert_eq!(
            status(&a_status(vec![]), 1_200, PLAIN),
            "node         node1\n\
             version      0.1.0\n\
             generation   12, in force for 3 min 20 s\n\
             source       followed\n\
             last change  enforced 7 ms after it was made\n\
             endpoints    8\n\
             connections  1204\n\
             bandwidth    tbf\n\
             uplinks      eth0 (default route, MTU 1500), bond0 (10.1.0.5 in 10.0.0.0/8, MTU 1500)\n\
             objects      all in force\n"
        );
    }

    #[test]
    fn status_names_each_refused_object_on_a_line() {
        let shown = status(&a_status(vec![refused(), refused()]), 0, PLAIN);
        let (_, tail) = shown.split_once("objects").unwrap();
        assert_eq!(
            tail,
            "      2 problems; what was in force before still is\n\
             ⚠ web.yaml:12: Partition/web: spec.ingress[0].ports[1].endPort: 80 is below port 90\n\
             ⚠ web.yaml:12: Partition/web: spec.ingress[0].ports[1].endPort: 80 is below port 90\n"
        );
        assert!(
            shown.contains("12, in force for 0 s"),
            "a clock that went back is no reason to fail: {shown}"
        );
        let coloured = status(&a_status(vec![refused()]), 0, COLOURED);
        assert!(
            coloured.contains(
                "\x1b[33m1 problem; what was in force before still is\x1b[0m\n\x1b[33m⚠\x1b[0m web"
            )
        );
    }

    #[test]
    fn endpoints_show_rates_as_people_say_them() {
        let mut limited = EndpointInfo {
            id: AttachmentId { container_id: "c1".into(), ifname: "eth0".into() },
            pod: PodRef { namespace: "payments".into(), name: "db-0".into(), uid: None },
            partition: "payments".into(),
            addresses: vec!["10.65.0.3".parse().unwrap(), "fd00:65::3".parse().unwrap()],
            host_interface: "bh0a1b2c3d".into(),
            mac: "0a:58:0a:41:00:03".into(),
            identity: 1025,
            bandwidth_class: Some("management".into()),
            ingress_rate: Some(500_000_000),
            egress_rate: Some(1_000_000_000),
        };
        let mut open = limited.clone();
        open.pod.name = "a-longer-name".into();
        (open.bandwidth_class, open.ingress_rate, open.egress_rate) = (None, None, None);
        limited.addresses.truncate(1);
        assert_eq!(
            endpoints(&[limited, open], PLAIN),
            "\
POD                     PARTITION  ADDRESSES              INTERFACE   IDENTITY  CLASS          INGRESS    EGRESS
payments/db-0           payments   10.65.0.3              bh0a1b2c3d      1025  management  500 Mbit/s  1 Gbit/s
payments/a-longer-name  payments   10.65.0.3, fd00:65::3  bh0a1b2c3d      1025  -                    -         -
"
        );
        assert_eq!(endpoints(&[], PLAIN), "no pods on this node\n");
    }

    #[test]
    fn partitions_mark_their_strays() {
        let web = PartitionInfo {
            name: "web".into(),
            policy_id: 7,
            isolation: "Enforced".into(),
            namespaces: vec!["shop".into(), "cart".into()],
            pod_cidrs: vec!["10.66.0.0/16".parse().unwrap()],
            blocks: vec![],
            endpoints: 3,
            strays: 1,
        };
        assert_eq!(
            partitions(std::slice::from_ref(&web), PLAIN),
            "\
PARTITION  ID  ISOLATION  NAMESPACES  RANGES        BLOCKS HERE  PODS  STRAYS
web         7  Enforced   shop, cart  10.66.0.0/16  -               3       1
"
        );
        assert!(partitions(&[web], COLOURED).contains("     \x1b[33m1\x1b[0m\n"));
        assert_eq!(partitions(&[], PLAIN), "no partitions\n");
    }

    #[test]
    fn drops_name_their_rule_and_where_it_stands() {
        let by_rule = DropInfo {
            reason: "policy".into(),
            rule: Some(RuleInfo {
                number: 3,
                name: "Partition/web ingress \"from-payments\"".into(),
                file: Some("web.yaml:14".into()),
            }),
            partition: Some("web".into()),
            advice: None,
            direction: "ingress".into(),
            packets: 12,
            bytes: 1_500,
        };
        let spoofed = DropInfo {
            reason: "spoofed source".into(),
            rule: None,
            partition: None,
            advice: None,
            direction: "egress".into(),
            packets: 1,
            bytes: 60,
        };
        let closed = DropInfo {
            reason: "no policy here".into(),
            advice: Some("call elsewhere".into()),
            direction: "ingress".into(),
            ..spoofed.clone()
        };
        assert_eq!(
            drops(&[closed], PLAIN),
            "\
REASON          DIRECTION  PARTITION  PACKETS  BYTES  RULE
no policy here  ingress    -                1   60 B  -

no policy here: call elsewhere
"
        );
        assert_eq!(
            drops(&[by_rule, spoofed], PLAIN),
            "\
REASON          DIRECTION  PARTITION  PACKETS   BYTES  RULE
policy          ingress    web             12  1.5 kB  Partition/web ingress \"from-payments\"  (web.yaml:14)
spoofed source  egress     -                1    60 B  -
"
        );
        assert_eq!(drops(&[], PLAIN), "no packet was dropped\n");
    }
}
