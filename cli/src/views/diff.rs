//! `diff`: what a change would newly allow and deny.

use crate::{
    paint::{Colour, Paint},
    table::{self, number, text},
};
use bulkhead_api::messages::{ExampleFlow, PolicyChange, PolicyDiff};

pub fn diff(diff: &PolicyDiff, paint: Paint) -> String {
    let edited = match diff.changed.as_slice() {
        [] => return "no object differs from what is in force\n".to_string(),
        changed => format!("{}\n", some(changed).join("\n")),
    };
    if diff.changes.is_empty() {
        return format!("{edited}\nno flow is newly allowed or denied\n");
    }
    let row = |c: &PolicyChange| {
        let (word, colour) = if c.allows { ("+ allow", Colour::Good) } else { ("- deny", Colour::Bad) };
        let e = &c.example;
        vec![
            text(word).colour(colour),
            text(who(&c.from)),
            text(who(&c.to)),
            text(&c.protocol),
            text(&c.ports),
            text(example(e)),
            text(&c.after.name),
            number(c.cut_connections),
        ]
    };
    let header = ["NEWLY", "FROM", "TO", "PROTOCOL", "PORTS", "FOR EXAMPLE", "BY", "CUTS"];
    let shown = diff.changes.iter().take(LINES).map(row).collect();
    let more = match diff.changes.len().saturating_sub(LINES) {
        0 => String::new(),
        more => format!("and {more} more: -o json has them all\n"),
    };
    let rows = table::with_header(&header, shown, paint) + &more;
    format!("{edited}\n{rows}\n{}\n", cuts(diff.cut_connections))
}

/// Longer lists are for programs.
const LINES: usize = 50;

fn some(changed: &[String]) -> Vec<String> {
    let mut lines: Vec<_> = changed.iter().take(LINES).cloned().collect();
    if let more @ 1.. = changed.len().saturating_sub(LINES) {
        lines.push(format!("and {more} more: -o json has them all"));
    }
    lines
}

/// More are for programs.
const SHOWN: usize = 4;

fn who(groups: &[String]) -> String {
    match groups.len().saturating_sub(SHOWN) {
        0 | 1 => groups.join("; "),
        more => format!("{}; and {more} more", groups[..SHOWN].join("; ")),
    }
}

/// `10.66.0.1 -> 10.65.0.1 tcp/8080`.
fn example(flow: &ExampleFlow) -> String {
    let ExampleFlow { from, to, protocol, port } = flow;
    let service = match protocol {
        1 | 58 => format!("icmp/{port}"),
        6 => format!("tcp/{port}"),
        17 => format!("udp/{port}"),
        132 => format!("sctp/{port}"),
        other => format!("protocol {other}"),
    };
    format!("{from} -> {to} {service}")
}

fn cuts(connections: usize) -> String {
    match connections {
        0 => "no live connection of this node would be cut".to_string(),
        1 => "1 live connection of this node would be cut".to_string(),
        n => format!("{n} live connections of this node would be cut"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paint::PLAIN;
    use bulkhead_api::messages::RuleInfo;

    fn rule(name: &str) -> RuleInfo {
        RuleInfo { number: 64, name: name.into(), file: None }
    }

    #[test]
    fn a_change_says_who_to_whom_by_which_rule_and_what_it_cuts() {
        let change = PolicyChange {
            allows: false,
            from: vec!["partition web".into()],
            to: vec!["partition payments".into()],
            protocol: "tcp".into(),
            ports: "8000-8080".into(),
            example: ExampleFlow {
                from: "10.66.0.0".parse().unwrap(),
                to: "10.65.0.0".parse().unwrap(),
                protocol: 6,
                port: 8000,
            },
            before: rule("Partition/payments ingress[0]"),
            after: rule("no rule allows it"),
            cut_connections: 2,
        };
        let all = PolicyDiff {
            changed: vec!["~Partition/payments".into()],
            changes: vec![change],
            cut_connections: 2,
        };
        let expected = "\
~Partition/payments

NEWLY   FROM           TO                  PROTOCOL  PORTS      FOR EXAMPLE                      BY                 CUTS
- deny  partition web  partition payments  tcp       8000-8080  10.66.0.0 -> 10.65.0.0 tcp/8000  no rule allows it     2

2 live connections of this node would be cut
";
        assert_eq!(diff(&all, PLAIN), expected);
    }

    fn change(protocol: u8, port: u16, cut_connections: usize) -> PolicyChange {
        PolicyChange {
            allows: true,
            from: vec!["partition web".into()],
            to: vec!["world".into()],
            protocol: "any".into(),
            ports: "all".into(),
            example: ExampleFlow {
                from: "10.66.0.1".parse().unwrap(),
                to: "192.0.2.1".parse().unwrap(),
                protocol,
                port,
            },
            before: rule("no rule allows it"),
            after: rule("Partition/web egress[0]"),
            cut_connections,
        }
    }

    #[test]
    fn an_example_names_its_protocol_and_its_port_or_type() {
        let shown = |protocol| example(&change(protocol, 8, 0).example);
        let expected = ["icmp/8", "icmp/8", "tcp/8", "udp/8", "sctp/8", "protocol 47"];
        let expected = expected.map(|service| format!("10.66.0.1 -> 192.0.2.1 {service}"));
        assert_eq!([1, 58, 6, 17, 132, 47].map(shown), expected);
    }

    #[test]
    fn an_edit_that_turns_no_flow_and_a_single_cut_say_so() {
        let edited = PolicyDiff { changed: vec!["~Partition/web".into()], ..PolicyDiff::default() };
        assert_eq!(diff(&edited, PLAIN), "~Partition/web\n\nno flow is newly allowed or denied\n");
        let cut = |n| {
            diff(&PolicyDiff { changes: vec![change(6, 80, n)], cut_connections: n, ..edited.clone() }, PLAIN)
        };
        assert!(cut(0).ends_with("\nno live connection of this node would be cut\n"), "{}", cut(0));
        assert!(cut(1).ends_with("\n1 live connection of this node would be cut\n"), "{}", cut(1));
    }

    #[test]
    fn a_great_many_are_counted_and_not_printed() {
        let many = PolicyDiff {
            changed: (0..60).map(|n| format!("+Partition/p{n}")).collect(),
            ..PolicyDiff::default()
        };
        let shown = diff(&many, PLAIN);
        assert!(shown.contains("+Partition/p49\nand 10 more: -o json has them all\n\n"), "{shown}");
        assert!(!shown.contains("p50"), "{shown}");
        let changes = vec![change(6, 80, 0); LINES + 3];
        let shown = diff(&PolicyDiff { changes, ..many }, PLAIN);
        assert_eq!(shown.matches("+ allow").count(), LINES);
        assert!(shown.contains("\nand 3 more: -o json has them all\n\nno live"), "{shown}");
    }

    #[test]
    fn no_change_says_so() {
        assert_eq!(diff(&PolicyDiff::default(), PLAIN), "no object differs from what is in force\n");
    }
}
