//! `policy rules`.

use super::rule;
use crate::{
    paint::{Colour, Paint},
    table::{self, number, text},
    units,
};
use bulkhead_api::messages::RuleCountInfo;

/// `now`: Unix time, seconds.
pub fn rules(rules: &[RuleCountInfo], now: u64, paint: Paint) -> String {
    if rules.is_empty() {
        return "no such rules\n".to_string();
    }
    let row = |r: &RuleCountInfo| {
        let last_hit = match r.last_hit {
            Some(last) => text(format!("{} ago", units::duration(now.saturating_sub(last)))),
            None => text("never").colour(Colour::Warning),
        };
        let gone = if r.in_force { "" } else { "  (gone)" };
        vec![
            number(r.packets),
            number(units::bytes(r.bytes)),
            number(r.connections),
            last_hit,
            text(format!("{}{gone}", rule(&r.rule))),
        ]
    };
    let header = ["PACKETS", "BYTES", "CONNECTIONS", "LAST HIT", "RULE"];
    table::with_header(&header, rules.iter().map(row).collect(), paint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paint::PLAIN;
    use bulkhead_api::messages::RuleInfo;

    fn info(name: &str, packets: u64, last_hit: Option<u64>) -> RuleCountInfo {
        let rule = RuleInfo { number: 64, name: name.into(), file: Some("web.yaml:9".into()) };
        let in_force = !name.contains("old");
        RuleCountInfo { rule, in_force, packets, bytes: packets * 100, connections: packets / 10, last_hit }
    }

    #[test]
    fn rules_show_what_they_decided_on_and_which_never_did() {
        let shown =
            rules(&[info("a", 1_204, Some(60)), info("old", 3, Some(0)), info("b", 0, None)], 63, PLAIN);
        let expected = "\
PACKETS     BYTES  CONNECTIONS  LAST HIT       RULE
   1204  120.4 kB          120  3 s ago        a  (web.yaml:9)
      3     300 B            0  1 min 3 s ago  old  (web.yaml:9)  (gone)
      0       0 B            0  never          b  (web.yaml:9)
";
        assert_eq!(shown, expected);
    }

    #[test]
    fn no_rules_are_told_so() {
        assert_eq!(rules(&[], 0, PLAIN), "no such rules\n");
    }
}
