//! A speaker of ours in a process of its own, as the other receivers are; it is asked on its standard input.

use crate::{
    Error, Netns, Result,
    bgp::site::{NODE, NODE_AS, ROUTER, ROUTER_AS},
    unmet,
};
use bulkhead_bgp::{Family, PeerConfig, Remote, Speaker, SpeakerConfig};
use std::{
    io::{BufRead, BufReader, Write, stdin, stdout},
    net::{IpAddr, Ipv4Addr},
    process::{Child, ChildStdout, Stdio},
};
use tokio::runtime::Builder;

/// The program's argument that makes it one.
pub const RECEIVER: &str = "bgp-receiver";
/// Of all that is announced.
pub const NEXT_HOP: [u8; 4] = [172, 31, 9, 2];

/// Answers every line with the number of routes that were received, and of sessions.
pub fn receiver() -> Result<()> {
    let unusable = |e: &dyn std::fmt::Display| Error::Unmet(format!("the receiver: {e}"));
    let address = |text: &str| text.parse::<IpAddr>().map_err(|e| unusable(&e));
    let router: IpAddr = address(ROUTER)?;
    let config = SpeakerConfig {
        asn: ROUTER_AS,
        router_id: Ipv4Addr::new(172, 31, 9, 1),
        listen: vec![(router, 179).into()],
        restart_time: 60,
        restarting: false,
        forwarding_preserved: false,
    };
    let peer = |name: &str, remote| PeerConfig {
        hold_time: super::feed::HOLD,
        families: vec![Family::Ipv4Unicast],
        connect_retry: 1,
        local_address: Some(router),
        ..PeerConfig::new(name, remote, NODE_AS)
    };
    // Many come out of the range behind the node's own address.
    let many = "172.31.10.0/24".parse().map_err(|e| unusable(&e))?;
    let peers = vec![peer("node", Remote::Address(address(NODE)?)), peer("many", Remote::Range(many))];
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let speaker = runtime.block_on(async {
        let speaker = Speaker::start(config).await.map_err(|e| unusable(&e))?;
        speaker.set_peers(peers);
        Ok::<_, Error>(speaker)
    })?;
    for line in stdin().lock().lines() {
        line?;
        let peers = runtime.block_on(speaker.peers());
        let received: usize = peers.iter().map(|peer| peer.received).sum();
        let up = peers.iter().filter(|peer| peer.error.is_none() && peer.received > 0).count();
        writeln!(stdout(), "{received} {up}")?;
    }
    Ok(())
}

pub struct Receiver {
    process: Child,
    answers: BufReader<ChildStdout>,
}

impl Receiver {
    pub fn start(netns: &Netns) -> Result<Self> {
        let mut command = netns.command("/proc/self/exe");
        let mut process = command.arg(RECEIVER).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let Some(answers) = process.stdout.take() else { return unmet("the receiver has no output") };
        Ok(Self { process, answers: BufReader::new(answers) })
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn received(&mut self) -> Result<usize> {
        let Some(questions) = &mut self.process.stdin else { return unmet("the receiver has no input") };
        questions.write_all(b"\n")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        let number = answer.split(' ').next().and_then(|number| number.parse().ok());
        number.map_or_else(|| unmet(format!("the receiver says {answer:?}")), Ok)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
