//! Cables: veth pairs with addresses, by `ip`.

use crate::{Error, Netns, Result, error::Context};
use std::process::Command;

/// Runs `ip` with the words of one line, in a namespace or in the lab's own.
pub fn ip(netns: Option<&Netns>, arguments: &str) -> Result<()> {
    ip_output(netns, arguments).map(drop)
}

/// As [`ip`], and what it printed.
pub fn ip_output(netns: Option<&Netns>, arguments: &str) -> Result<String> {
    let mut command = netns.map_or_else(|| Command::new("ip"), |n| n.command("ip"));
    command.args(arguments.split_whitespace());
    run(&mut command)
}

/// Runs a command to its end; its standard output, or an error with its standard error.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().during(|| format!("{command:?}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::Command {
        command: format!("{command:?}").replace('"', ""),
        status: output.status,
        stderr: String::from_utf8_lossy(&output.stderr).trim().into(),
    })
}

/// One end of a cable: interface `name` in `netns` with these addresses (`172.30.1.1/24`).
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    pub netns: &'a Netns,
    pub name: &'a str,
    pub addresses: &'a [&'a str],
}

/// A cable between two namespaces, both ends up.
pub fn veth(a: End<'_>, b: End<'_>) -> Result<()> {
    let (an, bn) = (a.netns.name(), b.netns.name());
    ip(None, &format!("link add {} netns {an} type veth peer name {} netns {bn}", a.name, b.name))?;
    for end in [a, b] {
        for address in end.addresses {
            end.netns.ip(&format!("address add {address} dev {}", end.name))?;
        }
        end.netns.ip(&format!("link set {} up", end.name))?;
    }
    Ok(())
}
