//! Clusters that were another plugin's, or are laid out another way: what the install guide says of them, run as it stands there.
//!
//! In a cluster of its own, in which nobody has installed Bulkhead before.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a suite fails by panicking")]
#![allow(dead_code, reason = "the site is that of suite `cluster`, which asks more of it")]

#[path = "cluster/layouts.rs"]
mod layouts;
#[path = "cluster/migration.rs"]
mod migration;
#[path = "cluster/site.rs"]
mod site;
#[path = "cluster/story.rs"]
mod story;

use bulkhead_lab::Result;
use site::Case;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(860);
const CASES: [(&str, Case); 2] = [
    ("from flannel to Bulkhead, a node at a time, as the guide says", migration::from_flannel),
    ("Helm's values for the folders of k3s hold, from install to uninstall", layouts::k3s),
];

fn main() -> Result<()> {
    story::run(LIMIT, &CASES)
}
