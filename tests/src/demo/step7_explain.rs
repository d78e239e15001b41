//! `bulkhead explain` names the verdict and the rule, for one allowed and two denied flows, one of them from the vm.

use super::Held;
use crate::{Error, Lab, Result, unmet};
use bulkhead_api::messages::Explanation;

struct Question {
    from: &'static str,
    port: &'static str,
    allowed: bool,
    /// Parts of the names of the rules that decide, in order.
    rules: &'static [&'static str],
}

const TO: &str = "payments/db-0";
const QUESTIONS: [Question; 3] = [
    Question {
        from: "web/front-0",
        port: "8080",
        allowed: true,
        rules: &["Partition/web egress \"to-payments\"", "Partition/payments ingress \"calls-from-web\""],
    },
    Question {
        from: "web/front-0",
        port: "8088",
        allowed: false,
        rules: &["Partition/web egress \"to-payments\"", "Partition/payments ingress \"no-debug-port\""],
    },
    // No rule of payments admits it.
    Question { from: "vm", port: "5432", allowed: false, rules: &[""] },
];

pub fn run(lab: &mut Lab) -> Result<Held> {
    let vm = lab.vm.v4.to_string();
    let mut details = Vec::new();
    for question in &QUESTIONS {
        let from = if question.from == "vm" { vm.as_str() } else { question.from };
        let explanation = ask(lab, from, question.port)?;
        details.push(judged(question, &explanation)?);
    }
    let figure = "1 allowed, 2 denied, each with the rule that decides".into();
    Ok(Held { figure, details, ..Held::default() })
}

fn ask(lab: &Lab, from: &str, port: &str) -> Result<Explanation> {
    let node = lab.node_of(lab.pod(TO)?);
    // People read a table; it must come, too.
    node.cli(&["explain", from, TO, "--protocol", "tcp", "--port", port])?;
    let text = node.cli(&["explain", from, TO, "--protocol", "tcp", "--port", port, "-o", "json"])?;
    serde_json::from_str(&text).map_err(|source| Error::Json { what: "what explain said".into(), source })
}

fn judged(question: &Question, explanation: &Explanation) -> Result<String> {
    let said = format!(
        "{} → {TO} TCP {}: {} by {}",
        question.from,
        question.port,
        if explanation.allowed { "allowed" } else { "denied" },
        explanation.decisions.iter().map(|d| d.rule.name.as_str()).collect::<Vec<_>>().join(", then "),
    );
    let rules_fit = explanation.decisions.len() == question.rules.len()
        && explanation.decisions.iter().zip(question.rules).all(|(d, rule)| d.rule.name.contains(rule));
    let last_denies = explanation
        .decisions
        .last()
        .is_some_and(|d| d.allowed == question.allowed && !d.rule.name.is_empty());
    if explanation.allowed == question.allowed && rules_fit && last_denies {
        return Ok(said);
    }
    unmet(format!("explain says {said}"))
}
