//! A session's password out of a Secret: beside a real router that has the same, and nowhere to be read.

use crate::site::{Case, SOON, Site};
use bulkhead_lab::{Bird, Result, enter::WORK, unmet, until};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

pub const CASES: &[(&str, Case)] =
    &[("a password comes from a Secret, follows its change, and is nowhere to be read", followed)];

const FIRST: &str = "correct-horse";
const SECOND: &str = "battery-staple";

fn secret(name: &str, password: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: bulkhead}}\n\
         stringData: {{leaf: {password}}}\n---\n"
    )
}

fn peer(secret: &str) -> String {
    format!(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: BGPConfiguration\nmetadata: {{name: default}}\n\
         spec: {{asn: 65010, restartTimeSeconds: 3}}\n---\n\
         apiVersion: bulkhead.dev/v1alpha1\nkind: BGPPeer\nmetadata: {{name: leaf}}\n\
         spec: {{peerAddress: 172.30.1.1, peerASN: 65020, connectRetrySeconds: 1, families: [IPv4],\n\
         session: {{passwordSecret: {{{secret}key: leaf}}}}}}\n"
    )
}

/// A router on the control plane's end of the cable.
fn router(site: &Site, password: &str) -> Result<Bird> {
    let configuration = format!(
        "log stderr all;\nrouter id 172.30.1.1;\nprotocol device {{}}\n\
         protocol bgp node {{ local 172.30.1.1 as 65020; neighbor 172.30.1.2 as 65010; password \"{password}\";\n\
         connect delay time 1; connect retry time 1; error wait time 1, 1; ipv4 {{ import all; export none; }}; }}\n"
    );
    Bird::start(&site.control.netns, &Path::new(WORK).join("leaf"), &configuration)
}

fn followed(site: &mut Site) -> Result<()> {
    let bird = router(site, FIRST)?;
    site.control.apply(&peer(""))?;
    site.wait_told("Secret bulkhead/bulkhead-bgp: there is none")?;
    site.control.apply(&secret("bulkhead-bgp", FIRST))?;
    bird.wait_established(&["node"], SOON)?;
    site.wait_sound()?;
    // The router has the new one first: the session ends, and comes back with the Secret's change.
    drop(bird);
    let bird = router(site, SECOND)?;
    site.control.apply(&secret("bulkhead-bgp", SECOND))?;
    bird.wait_established(&["node"], SOON)?;
    // Without the API server a daemon that starts knows it still.
    site.node.stop_daemon()?;
    site.control.kill_apiserver()?;
    site.node.start_daemon_unready()?;
    until("the router notices the restart", SOON, || Ok((!bird.established("node")?).then_some(())))?;
    bird.wait_established(&["node"], SOON)?;
    site.control.start_apiserver()?;
    site.node.wait_ready()?;
    nowhere(site)?;
    // One that nobody has given the daemons a right to.
    site.control.apply(&secret("other", FIRST))?;
    site.control.apply(&peer("name: other, "))?;
    site.wait_told("is it named in the Role of the daemons?")?;
    // Read again, so that there is something to forget.
    site.control.apply(&peer(""))?;
    until("the Secret is read again", SOON, || Ok(remembered(site)?.contains(SECOND).then_some(())))?;
    // Also where no configuration is left that could name a Secret.
    site.control.kubectl(&["delete", "bgpconfiguration/default"])?;
    until("what was read is forgotten", SOON, || match remembered(site)?.as_str() {
        "{}" => Ok(Some(())),
        text => unmet(text.to_owned()),
    })?;
    site.control.kubectl(&["delete", "bgppeer/leaf"])?;
    site.wait_sound()
}

fn file(site: &Site) -> PathBuf {
    site.node.dir().join("bgp-passwords.json")
}

fn remembered(site: &Site) -> Result<String> {
    Ok(fs::read_to_string(file(site))?)
}

/// But in the Secret, and in one file that is root's.
fn nowhere(site: &Site) -> Result<()> {
    let remembered = file(site);
    let mode = fs::metadata(&remembered)?.permissions().mode() & 0o777;
    if mode != 0o600 || !fs::read_to_string(&remembered)?.contains(SECOND) {
        return unmet(format!("{} has mode {mode:o}", remembered.display()));
    }
    let objects = site.control.kubectl(&[
        "get",
        "bgppeers,bgpconfigurations,nodereports,events",
        "-A",
        "-o",
        "yaml",
    ])?;
    let told = [
        objects,
        fs::read_to_string(site.node.log())?,
        site.node.cli(&["status", "-o", "json"])?,
        site.node.cli(&["bgp", "peers", "-o", "json"])?,
    ];
    let dir = site.node.dir().display().to_string();
    let found = Command::new("grep").args(["-rlE", &format!("{FIRST}|{SECOND}"), &dir]).output()?;
    let files = String::from_utf8_lossy(&found.stdout).into_owned();
    let only = files.trim() == remembered.display().to_string();
    let silent = told.iter().all(|text| !text.contains(FIRST) && !text.contains(SECOND));
    if only && silent { Ok(()) } else { unmet(format!("a password can be read: in {files}, or in {told:?}")) }
}
