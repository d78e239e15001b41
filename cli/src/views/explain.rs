//! `explain`: the flow, who decides, and the verdict.

use super::rule;
use crate::{
    paint::{Colour, Paint},
    table::{self, Cell, text},
};
use bulkhead_api::messages::{ExplainedDecision, ExplainedEnd, Explanation, TierDecision};

pub fn explain(e: &Explanation, paint: Paint) -> String {
    let decisions = match e.decisions.as_slice() {
        [] => "  neither end is a pod of this node: nothing here decides\n".to_string(),
        decisions => table::columns(decisions.iter().flat_map(rows).collect(), "  ", paint),
    };
    let (verdict, colour) = verdict(e.allowed);
    format!(
        "{}  ->  {}   {}\n{decisions}{} in generation {}{}\n",
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
    )
}

fn verdict(allowed: bool) -> (&'static str, Colour) {
    if allowed { ("allowed", Colour::Good) } else { ("denied", Colour::Bad) }
}

/// `10.65.0.3 (payments/db-0, partition payments)`; for others what rules know the address by.
fn end(end: &ExplainedEnd) -> String {
    let partition = end.partition.as_ref().map(|p| format!("partition {p}"));
    let mut names: Vec<_> = end.pod.iter().cloned().chain(partition).collect();
    if end.pod.is_none() {
        names.extend_from_slice(&end.known_as);
    }
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
        }
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
        };
        let e = Explanation {
            allowed: true,
            generation: 3,
            from: outside("192.0.2.7", &["NetworkGroup/vms", "world"]),
            to: outside("2001:db8::1", &[]),
            protocol: "icmpv6".into(),
            port: 128,
            decisions: vec![],
        };
        assert_eq!(
            explain(&e, PLAIN),
            "\
192.0.2.7 (NetworkGroup/vms, world)  ->  2001:db8::1   icmpv6 type 128
  neither end is a pod of this node: nothing here decides
allowed in generation 3
"
        );
    }

    #[test]
    fn a_terminal_shows_verdicts_in_colour() {
        let shown = explain(&denied(), COLOURED);
        assert!(shown.contains("  \x1b[31mdenied\x1b[0m   Partition/payments"), "{shown}");
        assert!(shown.contains("  \x1b[32mallowed\x1b[0m  Partition/web"), "{shown}");
        assert!(shown.ends_with("\x1b[31mdenied\x1b[0m in generation 12\n"), "{shown}");
    }
}
