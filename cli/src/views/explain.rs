//! `explain`: the flow, who decides, and the verdict; what the ends may use, and the connections that live of it.

use super::rule;
use crate::{
    paint::{Colour, Paint},
    table::{self, Cell, number, text},
    units,
};
use bulkhead_api::messages::{
    AdmissionInfo, ConnectionInfo, ExplainedBackend, ExplainedBandwidth, ExplainedDecision, ExplainedEnd,
    ExplainedRate, ExplainedService, Explanation, OtherPart, TierDecision,
};

pub fn explain(e: &Explanation, paint: Paint) -> String {
    let decisions = match e.decisions.as_slice() {
        [] if e.from.pod.is_some() && e.from.address == e.to.address => {
            "  a pod reaches itself: nothing decides\n".to_string()
        }
        [] => "  neither end is a pod of this node: nothing here decides\n".to_string(),
        decisions => table::columns(decisions.iter().flat_map(rows).collect(), "  ", paint),
    };
    let (verdict, colour) = verdict(e.allowed);
    let called = e.service.as_ref().map(|s| called(s, paint)).unwrap_or_default();
    if e.service.as_ref().is_some_and(|s| s.backends.is_empty()) {
        return called;
    }
    format!(
        "{called}{}  ->  {}   {}\n{decisions}{} in generation {}{}\n{}{}{}",
        end(&e.from),
        end(&e.to),
        service(e),
        paint.apply(colour, verdict),
        e.generation,
        // `allowed` speaks of the packet, a decision of the rule.
        if e.allowed && e.decisions.iter().any(|d| !d.allowed) {
            ", the denial is only recorded (audit)"
        } else {
            ""
        },
        otherwise(&e.otherwise, paint),
        bandwidth(e, paint),
        connections(e, paint),
    )
}

/// What the address stands for, and what becomes of each backend.
fn called(s: &ExplainedService, paint: Paint) -> String {
    let head = format!("{} is service {} ({}): ", s.called, s.name, s.kind);
    if s.backends.is_empty() {
        return head + "no backend, a call is refused at once\n";
    }
    let row = |b: &ExplainedBackend| {
        let (word, colour) = verdict(b.allowed);
        let by = b.rule.as_ref().map_or_else(|| "neither end is a pod".to_string(), rule);
        vec![text(b.address), text(word).colour(colour), text(by)]
    };
    let backends = table::columns(s.backends.iter().map(row).collect(), "  ", paint);
    format!("{head}a call goes to one of\n{backends}\n")
}

/// Of a network group, what does not fare as the address shown.
fn otherwise(parts: &[OtherPart], paint: Paint) -> String {
    let row = |p: &OtherPart| {
        let (word, colour) = verdict(p.allowed);
        let ends = text(format!("{} -> {}", p.from, p.to));
        vec![text("but"), ends, text(word).colour(colour), text(rule(&p.rule))]
    };
    table::columns(parts.iter().map(row).collect(), "  ", paint)
}

/// Of the pods of this node.
fn bandwidth(e: &Explanation, paint: Paint) -> String {
    let limited = |end: &ExplainedEnd| Some((end.pod.clone()?, end.bandwidth.clone()?));
    let mut pods: Vec<_> = [&e.from, &e.to].into_iter().filter_map(limited).collect();
    pods.dedup();
    if pods.is_empty() {
        return String::new();
    }
    let row = |(pod, b): (String, ExplainedBandwidth)| {
        let class = b.class.map_or("no class".to_string(), |c| format!("class {c}"));
        vec![text(pod), text(class), text(rate("in", b.ingress)), text(rate("out", b.egress))]
    };
    let rows = pods.into_iter().map(row).collect();
    format!("\nbandwidth\n{}", table::columns(rows, "  ", paint))
}

fn rate(direction: &str, rate: Option<ExplainedRate>) -> String {
    match rate {
        None => format!("{direction} unlimited"),
        Some(r) => format!("{direction} {} ({})", units::rate(r.rate), r.origin),
    }
}

fn connections(e: &Explanation, paint: Paint) -> String {
    let found = match e.connections_found {
        0 => return "\nno live connection\n".into(),
        1 => "1 live connection".to_string(),
        n => format!("{n} live connections"),
    };
    let shown = match e.connections.len() {
        n if n < e.connections_found => format!("{found}, the last {n}"),
        _ => found,
    };
    let row = |c: &ConnectionInfo| {
        let from = match e.protocol.as_str() {
            "tcp" | "udp" | "sctp" => std::net::SocketAddr::new(c.from, c.from_port).to_string(),
            _ => c.from.to_string(),
        };
        let admitted = match c.admitted.as_slice() {
            [] => "the node's own".to_string(),
            ends => ends.iter().map(admission).collect::<Vec<_>>().join("; "),
        };
        vec![
            text(from),
            text(&c.state),
            text(units::duration(c.idle_seconds)),
            number(c.packets),
            number(units::bytes(c.bytes)),
            text(&c.path),
            text(admitted),
        ]
    };
    let header = ["FROM", "STATE", "IDLE", "PACKETS", "BYTES", "PATH", "ADMITTED BY"];
    let rows = e.connections.iter().map(row).collect();
    format!("\n{shown}\n{}", table::with_header(&header, rows, paint))
}

fn admission(a: &AdmissionInfo) -> String {
    let kept = if a.keep { ", kept" } else { "" };
    format!("{} in generation {}{kept}: {}", a.direction, a.generation, rule(&a.rule))
}

fn verdict(allowed: bool) -> (&'static str, Colour) {
    if allowed { ("allowed", Colour::Good) } else { ("denied", Colour::Bad) }
}

/// `10.65.0.3 (payments/db-0, partition payments)`; for others what rules know the address by.
fn end(end: &ExplainedEnd) -> String {
    let partition = end.partition.as_ref().map(|p| format!("partition {p}"));
    let mut names: Vec<_> = end.pod.iter().cloned().chain(partition).collect();
    // Of a pod there is much more to say than asked for.
    let said = |known: &&String| end.pod.is_none() || known.starts_with("NetworkGroup/");
    names.extend(end.known_as.iter().filter(said).cloned());
    match names.is_empty() {
        true => end.address.to_string(),
        false => format!("{} ({})", end.address, names.join(", ")),
    }
}

fn service(e: &Explanation) -> String {
    match e.protocol.as_str() {
        "icmp" | "icmpv6" => format!("{} type {}", e.protocol, e.port),
        "tcp" | "udp" | "sctp" => format!("{}/{}", e.protocol, e.port),
        other => format!("protocol {other}"),
    }
}

/// A decision, and below it what each tier says where others than the partition have a say.
fn rows(d: &ExplainedDecision) -> Vec<Vec<Cell>> {
    let others = d.tiers.iter().any(|t| !["node", "partition"].contains(&t.tier.as_str()));
    let tiers = if others { d.tiers.as_slice() } else { &[] };
    std::iter::once(row(d)).chain(tiers.iter().map(tier)).collect()
}

fn tier(t: &TierDecision) -> Vec<Cell> {
    let name = match t.tier.as_str() {
        "node" => "own node",
        "networkPolicy" => "NetworkPolicy",
        other => other,
    };
    let verdict = match t.verdict.as_str() {
        "allow" => text("yes"),
        "deny" => text("no"),
        other => text(other),
    };
    vec![text(""), text(format!("- {name}")), verdict, text(t.rule.as_ref().map_or(String::new(), rule))]
}

fn row(d: &ExplainedDecision) -> Vec<Cell> {
    let (word, colour) = verdict(d.allowed);
    let shown = match d.audit && !d.allowed {
        true => text("denied (audit)").colour(Colour::Warning),
        false => text(word).colour(colour),
    };
    vec![text(&d.direction), text(format!("partition {}", d.partition)), shown, text(rule(&d.rule))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paint::{COLOURED, PLAIN};
    use bulkhead_api::messages::RuleInfo;

    fn pod(address: &str, pod: &str, partition: &str) -> ExplainedEnd {
        ExplainedEnd {
            address: address.parse().unwrap(),
            pod: Some(pod.into()),
            partition: Some(partition.into()),
            known_as: vec!["10.0.0.0/8".into()],
            identity: 1,
            bandwidth: None,
        }
    }

    fn decision(
        direction: &str,
        partition: &str,
        allowed: bool,
        name: &str,
        file: Option<&str>,
    ) -> ExplainedDecision {
        ExplainedDecision {
            direction: direction.into(),
            partition: partition.into(),
            allowed,
            audit: false,
            rule: RuleInfo { number: 1, name: name.into(), file: file.map(str::to_string) },
            tiers: vec![],
        }
    }

    fn denied() -> Explanation {
        Explanation {
            allowed: false,
            generation: 12,
            from: pod("10.65.0.3", "payments/db-0", "payments"),
            to: pod("10.66.0.2", "web/shop-1", "web"),
            protocol: "tcp".into(),
            port: 8080,
            decisions: vec![
                decision(
                    "egress",
                    "payments",
                    false,
                    "Partition/payments: no rule allows it (default deny)",
                    None,
                ),
                decision(
                    "ingress",
                    "web",
                    true,
                    "Partition/web ingress \"from-payments\"",
                    Some("web.yaml:14"),
                ),
            ],
            service: None,
            otherwise: vec![],
            connections: vec![],
            connections_found: 0,
        }
    }

    #[test]
    fn what_lives_of_the_flow_and_what_its_ends_may_use_stands_below() {
        let mut e = denied();
        let rate = |rate, origin: &str| Some(ExplainedRate { rate, origin: origin.into() });
        e.from.bandwidth = Some(ExplainedBandwidth {
            class: Some("low".into()),
            ingress: rate(1_000_000_000, "annotation"),
            egress: rate(20_000_000, "runtime"),
        });
        e.to.bandwidth = Some(ExplainedBandwidth::default());
        e.to.known_as = vec!["NetworkGroup/shops".into()];
        e.connections_found = 20;
        let admission = |direction: &str, keep| AdmissionInfo {
            direction: direction.into(),
            generation: 11,
            rule: RuleInfo {
                number: 64,
                name: "Partition/web ingress[0]".into(),
                file: Some("web.yaml:14".into()),
            },
            keep,
        };
        e.connections = vec![ConnectionInfo {
            from: "10.65.0.3".parse().unwrap(),
            to: "10.66.0.2".parse().unwrap(),
            from_port: 40_000,
            state: "established".into(),
            idle_seconds: 75,
            packets: 12,
            bytes: 1_500,
            path: "direct".into(),
            admitted: vec![admission("egress", false), admission("ingress", true)],
        }];
        assert_eq!(
            explain(&e, PLAIN),
            "\
10.65.0.3 (payments/db-0, partition payments)  ->  10.66.0.2 (web/shop-1, partition web, NetworkGroup/shops)   tcp/8080
  egress   partition payments  denied   Partition/payments: no rule allows it (default deny)
  ingress  partition web       allowed  Partition/web ingress \"from-payments\"  (web.yaml:14)
denied in generation 12

bandwidth
  payments/db-0  class low  in 1 Gbit/s (annotation)  out 20 Mbit/s (runtime)
  web/shop-1     no class   in unlimited              out unlimited

20 live connections, the last 1
FROM             STATE        IDLE        PACKETS   BYTES  PATH    ADMITTED BY
10.65.0.3:40000  established  1 min 15 s       12  1.5 kB  direct  egress in generation 11: Partition/web ingress[0]  (web.yaml:14); ingress in generation 11, kept: Partition/web ingress[0]  (web.yaml:14)
"
        );
    }

    #[test]
    fn the_nodes_own_connections_have_no_rule_and_pings_no_port() {
        let mut e = denied();
        (e.protocol, e.port, e.connections_found) = ("icmp".into(), 8, 1);
        e.connections = vec![ConnectionInfo {
            from: "192.0.2.1".parse().unwrap(),
            to: "10.66.0.2".parse().unwrap(),
            from_port: 77,
            state: "answered".into(),
            idle_seconds: 1,
            packets: 2,
            bytes: 168,
            path: "stack".into(),
            admitted: vec![],
        }];
        // A pod that calls itself has one bandwidth.
        e.from.bandwidth = Some(ExplainedBandwidth::default());
        e.to = e.from.clone();
        let below = "\
bandwidth
  payments/db-0  no class  in unlimited  out unlimited

1 live connection
FROM       STATE     IDLE  PACKETS  BYTES  PATH   ADMITTED BY
192.0.2.1  answered  1 s         2  168 B  stack  the node's own
";
        let shown = explain(&e, PLAIN);
        assert!(shown.ends_with(&format!("\n{below}")), "{shown}");
    }

    #[test]
    fn parts_of_a_group_that_fare_otherwise_are_told() {
        let mut e = denied();
        e.otherwise = vec![OtherPart {
            from: "10.65.0.0/24".parse().unwrap(),
            to: "10.66.0.2/32".parse().unwrap(),
            allowed: true,
            rule: RuleInfo { number: 64, name: "the partition is open".into(), file: None },
        }];
        let shown = explain(&e, PLAIN);
        let told =
            "denied in generation 12\n  but  10.65.0.0/24 -> 10.66.0.2/32  allowed  the partition is open\n";
        assert!(shown.contains(told), "{shown}");
    }

    #[test]
    fn a_denial_names_both_ends_the_rule_and_the_generation() {
        assert_eq!(
            explain(&denied(), PLAIN),
            "\
10.65.0.3 (payments/db-0, partition payments)  ->  10.66.0.2 (web/shop-1, partition web)   tcp/8080
  egress   partition payments  denied   Partition/payments: no rule allows it (default deny)
  ingress  partition web       allowed  Partition/web ingress \"from-payments\"  (web.yaml:14)
denied in generation 12

no live connection
"
        );
    }

    #[test]
    fn an_audited_denial_is_told_from_the_packet_that_passes() {
        let mut audited = denied();
        audited.allowed = true;
        audited.decisions[0].audit = true;
        assert_eq!(
            explain(&audited, PLAIN),
            "\
10.65.0.3 (payments/db-0, partition payments)  ->  10.66.0.2 (web/shop-1, partition web)   tcp/8080
  egress   partition payments  denied (audit)  Partition/payments: no rule allows it (default deny)
  ingress  partition web       allowed         Partition/web ingress \"from-payments\"  (web.yaml:14)
allowed in generation 12, the denial is only recorded (audit)

no live connection
"
        );
    }

    #[test]
    fn each_tier_that_has_a_say_is_told_below_its_decision() {
        let told = |tier: &str, verdict: &str, name: &str| TierDecision {
            tier: tier.into(),
            verdict: verdict.into(),
            rule: (!name.is_empty()).then(|| RuleInfo { number: 1, name: name.into(), file: None }),
        };
        let mut e = denied();
        e.decisions.truncate(1);
        e.decisions[0].tiers = vec![
            told("node", "none", ""),
            told("partition", "deny", "default"),
            told("networkPolicy", "allow", "np"),
        ];
        let mut alone = e.clone();
        alone.decisions[0].tiers.truncate(2);
        assert!(!explain(&alone, PLAIN).contains("- partition"), "the decision has said it");
        let shown = explain(&e, PLAIN);
        let below: Vec<&str> = shown.lines().skip(2).take(3).map(str::trim).collect();
        assert_eq!(below.len(), 3);
        assert!(below[0].starts_with("- own node") && below[0].ends_with("none"), "{shown}");
        assert!(below[1].starts_with("- partition") && below[1].ends_with("no      default"), "{shown}");
        assert!(below[2].starts_with("- NetworkPolicy") && below[2].ends_with("yes     np"), "{shown}");
    }

    #[test]
    fn ends_outside_are_shown_as_rules_know_them() {
        let outside = |address: &str, known: &[&str]| ExplainedEnd {
            address: address.parse().unwrap(),
            pod: None,
            partition: None,
            known_as: known.iter().map(|k| k.to_string()).collect(),
            identity: 2,
            bandwidth: None,
        };
        let e = Explanation {
            allowed: true,
            generation: 3,
            from: outside("192.0.2.7", &["NetworkGroup/vms", "world"]),
            to: outside("2001:db8::1", &[]),
            protocol: "icmpv6".into(),
            port: 128,
            decisions: vec![],
            service: None,
            otherwise: vec![],
            connections: vec![],
            connections_found: 0,
        };
        assert_eq!(
            explain(&e, PLAIN),
            "\
192.0.2.7 (NetworkGroup/vms, world)  ->  2001:db8::1   icmpv6 type 128
  neither end is a pod of this node: nothing here decides
allowed in generation 3

no live connection
"
        );
    }

    #[test]
    fn a_pod_reaches_itself() {
        let mut e = denied();
        (e.allowed, e.to) = (true, e.from.clone());
        e.decisions.clear();
        let told = "tcp/8080\n  a pod reaches itself: nothing decides\nallowed in generation 12\n";
        assert!(explain(&e, PLAIN).contains(told));
    }

    #[test]
    fn a_service_shows_each_backend_and_then_the_first() {
        let backend = |address: &str, allowed| ExplainedBackend {
            address: address.parse().unwrap(),
            allowed,
            rule: allowed.then(|| RuleInfo { number: 64, name: "a".into(), file: Some("web.yaml:9".into()) }),
        };
        let service = |backends| ExplainedService {
            name: "shop/cart".into(),
            kind: "ClusterIP".into(),
            called: "10.96.0.1:80".parse().unwrap(),
            backends,
        };
        let mut e = denied();
        let plain = explain(&e, PLAIN);
        e.service = Some(service(vec![backend("10.65.0.1:8085", true), backend("10.64.0.2:8085", false)]));
        let expected = "\
10.96.0.1:80 is service shop/cart (ClusterIP): a call goes to one of
  10.65.0.1:8085  allowed  a  (web.yaml:9)
  10.64.0.2:8085  denied   neither end is a pod

";
        assert_eq!(explain(&e, PLAIN), format!("{expected}{plain}"));
        e.service = Some(service(vec![]));
        assert_eq!(
            explain(&e, PLAIN),
            "10.96.0.1:80 is service shop/cart (ClusterIP): no backend, a call is refused at once\n"
        );
    }

    #[test]
    fn a_terminal_shows_verdicts_in_colour() {
        let shown = explain(&denied(), COLOURED);
        assert!(shown.contains("  \x1b[31mdenied\x1b[0m   Partition/payments"), "{shown}");
        assert!(shown.contains("  \x1b[32mallowed\x1b[0m  Partition/web"), "{shown}");
        assert!(shown.ends_with("\x1b[31mdenied\x1b[0m in generation 12\n\nno live connection\n"), "{shown}");
    }
}
