//! The ten steps: the job that Bulkhead is for, each step one function that measures or says why it did not hold.
//!
//! `bulkhead-demo` shows them; the suite `lab` runs the same functions as tests. They share one lab and run in this order.

mod call;
mod expected;
mod flows;
mod matrix;
mod report;
mod step10_delete;
mod step1_addresses;
mod step2_bgp;
mod step3_pod_ip;
mod step4_matrix;
mod step5_edit;
mod step6_refuse;
mod step7_explain;
mod step8_bandwidth;
mod step9_takeover;

pub use report::{Report, painted};

use crate::{Lab, Result, figure::Figure};

/// A step that held.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Held {
    /// What was measured, in one line.
    pub figure: String,
    /// More of it, one line each.
    pub details: Vec<String>,
    /// The same for programs.
    pub figures: Vec<Figure>,
}

impl Held {
    fn new(figure: String) -> Self {
        Self { figure, ..Self::default() }
    }
}

pub struct Step {
    pub title: &'static str,
    pub run: fn(&mut Lab) -> Result<Held>,
}

pub const STEPS: [Step; 10] = [
    Step { title: "pods of three partitions get their addresses", run: step1_addresses::run },
    Step { title: "the router learns every block by BGP", run: step2_bgp::run },
    Step { title: "the vm calls a pod by its own IP", run: step3_pod_ip::run },
    Step { title: "who reaches whom is what the rules say", run: step4_matrix::run },
    Step { title: "an edited rule holds, for live connections too", run: step5_edit::run },
    Step { title: "broken files are refused by name", run: step6_refuse::run },
    Step { title: "explain names verdict and rule", run: step7_explain::run },
    Step { title: "bandwidth classes hold from the first second", run: step8_bandwidth::run },
    Step { title: "kill -9 of a daemon loses nothing", run: step9_takeover::run },
    Step { title: "deleted pods leave nothing", run: step10_delete::run },
];
