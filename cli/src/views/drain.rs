//! `node drain-routes`, and its lines in `status`.

use crate::units;
use bulkhead_api::messages::{DrainInfo, DrainScope};

pub fn drained(draining: &[DrainInfo]) -> String {
    match draining {
        [] => "nothing is drained: this node announces what it has\n".to_string(),
        _ => draining.iter().map(|drain| format!("{}\n", line(drain))).collect(),
    }
}

/// In one line.
pub fn draining(draining: &[DrainInfo]) -> Option<String> {
    let lines: Vec<_> = draining.iter().map(line).collect();
    (!lines.is_empty()).then(|| lines.join("; "))
}

fn line(drain: &DrainInfo) -> String {
    let what = match &drain.what {
        DrainScope::Services => "services".to_string(),
        DrainScope::Peers(names) => format!("all routes towards {}", names.join(", ")),
        DrainScope::All => "all routes".to_string(),
    };
    let by = if drain.by == "annotation" { " (the node's annotation)" } else { "" };
    match drain.withdrawn {
        true => format!("{what}: withdrawn{by}"),
        false => {
            let left = units::duration(drain.withdraw_in);
            format!("{what}: announced as the last choice, withdrawn in {left}{by}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drained_is_told_with_the_time_that_is_left() {
        let drain = |what, by: &str, withdraw_in| DrainInfo {
            what,
            by: by.into(),
            withdrawn: withdraw_in == 0,
            withdraw_in,
        };
        let peers = DrainScope::Peers(vec!["leaf-a".into()]);
        let all = [drain(DrainScope::Services, "command", 59), drain(peers, "annotation", 0)];
        assert_eq!(
            drained(&all),
            "services: announced as the last choice, withdrawn in 59 s\n\
             all routes towards leaf-a: withdrawn (the node's annotation)\n"
        );
        assert_eq!(drained(&[]), "nothing is drained: this node announces what it has\n");
        assert_eq!(draining(&all[..1]).as_deref(), Some(drained(&all[..1]).trim_end()));
        assert_eq!(draining(&[]), None);
    }
}
