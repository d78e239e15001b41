//! A broken file is refused with a message that names file, object and field; what was in force stays in force.

use super::{Held, expected::SERVICES, matrix};
use crate::{Error, Lab, Result, unmet, until};
use bulkhead_api::messages::{ObjectError, Status};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(5);

/// One way to break the objects, and what the refusal must name.
struct Breakage {
    what: &'static str,
    file: &'static str,
    /// Text of the file from its text before.
    breaks: fn(&str) -> String,
    object: Option<&'static str>,
    field: Option<&'static str>,
}

const BREAKAGES: [Breakage; 4] = [
    Breakage {
        what: "a port range upside down",
        file: "payments.yaml",
        breaks: |text| text.replace("{port: 8000, endPort: 8090}", "{port: 8090, endPort: 8000}"),
        object: Some("Partition/payments"),
        field: Some("spec.ingress[2].ports[0].endPort"),
    },
    Breakage {
        what: "an unknown partition",
        file: "web.yaml",
        breaks: |text| text.replace("partition: payments", "partition: paymints"),
        object: Some("Partition/web"),
        field: Some("spec.egress[0].to[0].partition"),
    },
    Breakage {
        what: "bad YAML",
        file: "payments.yaml",
        breaks: |text| text.replace("ingress:", "ingress: ["),
        object: None,
        field: None,
    },
    Breakage {
        what: "overlapping ranges",
        file: "greedy.yaml",
        breaks: |_| {
            "apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {name: greedy}\n\
             spec: {policyID: 300, namespaces: [greedy], podCIDRs: [10.65.128.0/17]}\n"
                .into()
        },
        object: Some("Partition/greedy"),
        field: Some("spec.podCIDRs[0]"),
    },
];

pub fn run(lab: &mut Lab) -> Result<Held> {
    nothing_refused(lab)?;
    let (mut details, mut checked) = (Vec::new(), 0);
    for breakage in &BREAKAGES {
        let before = lab.objects.read(breakage.file).ok();
        let outcome = refused(lab, breakage, before.as_deref().unwrap_or_default());
        match before {
            Some(text) => lab.objects.write(breakage.file, &text).map(drop)?,
            None => lab.objects.remove(breakage.file)?,
        }
        let (message, cells) = outcome.map_err(|e| Error::Unmet(format!("{}: {e}", breakage.what)))?;
        details.push(message);
        checked += cells;
        nothing_refused(lab)?;
    }
    Ok(Held {
        figure: format!(
            "{} of {} refused by name on both nodes; {} cells as before",
            details.len(),
            BREAKAGES.len(),
            matrix::grouped(checked as u64)
        ),
        details,
        ..Held::default()
    })
}

/// The refusal in the daemon's words, and how many cells were found as before.
fn refused(lab: &Lab, breakage: &Breakage, before: &str) -> Result<(String, usize)> {
    let broken = (breakage.breaks)(before);
    if broken == before {
        return unmet("the file is not broken by this");
    }
    lab.objects.write(breakage.file, &broken)?;
    let mut message = String::new();
    for node in &lab.nodes {
        let what = format!("{} refuses {}", node.name, breakage.file);
        message = until(&what, DEADLINE, || {
            let errors = node.get::<Status>("/v1/status")?.errors;
            match errors.iter().find(|e| names(e, breakage)) {
                Some(error) => Ok(Some(error.to_string())),
                None => unmet(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
            }
        })?;
    }
    // A tenth of the matrix, another one each time.
    let all = matrix::cells(lab.sites().len(), &SERVICES);
    let some: Vec<_> = all.into_iter().skip(breakage.what.len() % 10).step_by(10).collect();
    Ok((message, matrix::holds_for(lab, &some)?.cells()))
}

fn names(error: &ObjectError, breakage: &Breakage) -> bool {
    let file = error
        .file
        .as_deref()
        .is_some_and(|f| f == breakage.file || f.starts_with(&format!("{}:", breakage.file)));
    let object = breakage.object.is_none() || error.object.as_deref() == breakage.object;
    let field = breakage.field.is_none() || error.field.as_deref() == breakage.field;
    file && object && field
}

fn nothing_refused(lab: &Lab) -> Result<()> {
    for node in &lab.nodes {
        until(&format!("{} refuses nothing", node.name), DEADLINE, || {
            match node.get::<Status>("/v1/status")?.errors.first() {
                None => Ok(Some(())),
                Some(error) => unmet(error.to_string()),
            }
        })?;
    }
    Ok(())
}
