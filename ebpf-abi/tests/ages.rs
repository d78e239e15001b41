//! Which age a connection has, and how long that is.

use bulkhead_ebpf_abi::{
    AgeKind, Ages, FLOW_ANSWERED, FLOW_CLOSED, FLOW_CLOSING, FLOW_ESTABLISHED, FLOW_INITIATOR_LOW,
    FLOW_KEEP_EGRESS, FLOW_KEEP_INGRESS, FLOW_UNASKED, Flow, PROTO_ICMP, PROTO_ICMPV6, PROTO_SCTP, PROTO_TCP,
    PROTO_UDP, TCP_FIN, TCP_RST,
};

#[test]
fn an_age_is_told_by_the_protocol_and_of_tcp_by_how_far_it_is() {
    // What else an entry's flags say is no matter.
    let others =
        [0, FLOW_INITIATOR_LOW | FLOW_ANSWERED | FLOW_KEEP_EGRESS | FLOW_KEEP_INGRESS | FLOW_UNASKED];
    for other in others {
        for proto in 0..=255 {
            for (closing, cut) in
                [(0, 0), (FLOW_CLOSING, 0), (FLOW_CLOSING | FLOW_CLOSED, 0), (FLOW_CLOSED, 3)]
            {
                let stage = other | closing;
                assert_eq!(AgeKind::of(proto, stage, cut), AgeKind::Unanswered, "{proto} {stage:#b}");
                let expected = match proto {
                    PROTO_TCP if cut != 0 => AgeKind::Cut,
                    PROTO_TCP if closing == FLOW_CLOSING => AgeKind::Closing,
                    PROTO_TCP if closing != 0 => AgeKind::Closed,
                    PROTO_TCP => AgeKind::Tcp,
                    PROTO_UDP => AgeKind::Udp,
                    PROTO_ICMP | PROTO_ICMPV6 => AgeKind::Echo,
                    _ => AgeKind::Other,
                };
                let found = AgeKind::of(proto, stage | FLOW_ESTABLISHED, cut);
                assert_eq!(found, expected, "{proto} {stage:#b} {cut}");
            }
        }
    }
}

#[test]
fn an_entry_has_the_age_of_its_kind_also_by_what_its_ends_have_sent() {
    let ages = Ages { unanswered: 1, tcp: 2, closing: 3, closed: 4, cut: 5, udp: 6, echo: 7, other: 8 };
    let open = Flow { flags: FLOW_ESTABLISHED, ..Flow::default() };
    let sent = |fin, fin_back| Flow { fin, fin_back, ..open };
    let entries = [
        (PROTO_TCP, Flow::default(), 1),
        (PROTO_UDP, Flow::default(), 1),
        (PROTO_TCP, open, 2),
        (PROTO_TCP, sent(TCP_FIN, 0), 3),
        (PROTO_TCP, sent(0, TCP_FIN), 3),
        (PROTO_TCP, sent(TCP_FIN, TCP_FIN), 4),
        (PROTO_TCP, sent(TCP_RST, 0), 4),
        (PROTO_TCP, Flow { cut: 1, ..sent(TCP_FIN, TCP_FIN) }, 5),
        (PROTO_UDP, open, 6),
        (PROTO_ICMP, open, 7),
        (PROTO_ICMPV6, open, 7),
        (PROTO_SCTP, open, 8),
        (47, open, 8),
    ];
    for (proto, flow, age) in entries {
        assert_eq!(ages.of(proto, &flow), age, "{proto} {flow:?}");
    }
    assert_eq!(ages.least(), 1);
    assert_eq!(Ages { other: 0, ..ages }.least(), 0);
}

/// nf_conntrack's, in seconds (`Documentation/networking/nf_conntrack-sysctl.rst`), but for what the page on the design lists.
#[test]
fn the_ages_are_those_that_the_page_on_the_design_tells() {
    let Ages { unanswered, tcp, closing, closed, cut, udp, echo, other } = Ages::DEFAULT;
    let seconds = [unanswered, tcp, closing, closed, cut, udp, echo, other]
        .map(|n| (n / 1_000_000_000, n % 1_000_000_000));
    assert_eq!(seconds, [30, 432_000, 120, 30, 300, 60, 30, 600].map(|n| (n, 0)));
    let page = include_str!("../../docs/ARCHITECTURE.md");
    let said = [
        format!(
            "Ages are nf_conntrack's, but for: unanswered {} s, closed {} s, UDP {} s.",
            unanswered / 1_000_000_000,
            closed / 1_000_000_000,
            udp / 1_000_000_000
        ),
        format!("for {} s from the last attempt", cut / 1_000_000_000),
    ];
    for said in said {
        assert!(page.split_whitespace().collect::<Vec<_>>().join(" ").contains(&said), "{said}");
    }
}
