//! Packets whose headers do not lie in the linear part of their buffer: a tap's writer has the kernel make such ones.

use crate::{
    node::{FAMILIES, Family, MAC_A, Node, POLICY_A, V4, VM, WORLD, ifindex},
    packet::{ACK, DST_MAC, Packet, SYN, TCP, icmp, sctp, tcp, udp},
    rules::{Port, Rules},
    sandbox::run,
};
use bulkhead_daemon::datapath::PodMaps;
use bulkhead_ebpf_abi::{DropKey, Flow, FlowKey};
use nix::sched::{CloneFlags, unshare};
use std::{
    fs::{self, File},
    io::{self, IoSlice, Write},
    mem::zeroed,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    panic::resume_unwind,
    thread,
    time::{Duration, Instant},
};

crate::trials! {
    paged:
    a_packet_means_the_same_wherever_its_headers_lie,
}

const DEADLINE: Duration = Duration::from_secs(10);

/// An Ethernet interface whose frames this process sends.
struct Tap(File);

impl Tap {
    /// Up, and for this host.
    fn new(name: &str) -> Self {
        const IFF_NAPI: i16 = 0x10;
        const IFF_NAPI_FRAGS: i16 = 0x20;
        let file = File::options().read(true).write(true).open("/dev/net/tun").expect("/dev/net/tun");
        let flags = (libc::IFF_TAP | libc::IFF_NO_PI) as i16 | IFF_NAPI | IFF_NAPI_FRAGS;
        request(file.as_raw_fd(), libc::TUNSETIFF, name, libc::__c_anonymous_ifr_ifru { ifru_flags: flags });
        whole(name);
        let mac = DST_MAC.map(|byte| format!("{byte:02x}")).join(":");
        run("ip", &["link", "set", name, "address", &mac, "up"]);
        Self(file)
    }

    /// Its first `linear` bytes in the linear part of the buffer, the others in pages.
    fn send(&mut self, frame: &[u8], linear: usize) {
        let (head, pages) = frame.split_at(linear.min(frame.len()));
        let parts = [IoSlice::new(head), IoSlice::new(pages)];
        let parts = if pages.is_empty() { &parts[..1] } else { &parts };
        assert_eq!(self.0.write_vectored(parts).expect("sent"), frame.len());
    }
}

/// No offload reads headers before the hook does: that would move them into the linear part.
fn whole(name: &str) {
    const ETHTOOL_SGRO: u32 = 0x2c;
    let mut off = [ETHTOOL_SGRO, 0];
    // SAFETY: a socket of our own.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd)
    };
    let data = libc::__c_anonymous_ifr_ifru { ifru_data: off.as_mut_ptr().cast() };
    request(socket.as_raw_fd(), libc::SIOCETHTOOL, name, data);
}

fn request(fd: i32, what: libc::c_ulong, name: &str, value: libc::__c_anonymous_ifr_ifru) {
    // SAFETY: all zero is a request; what `value` points to lives in the caller.
    let done = unsafe {
        let mut request: libc::ifreq = zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru = value;
        libc::ioctl(fd, what, &raw mut request)
    };
    assert_eq!(done, 0, "{name}: {}", io::Error::last_os_error());
}

/// What a hook may meet between the pod and the vm; `out`: the pod sends it.
fn packets(f: &Family, out: bool) -> Vec<Packet> {
    let ends = |port: u16| if out { ((f.a, 5), (f.vm, port)) } else { ((f.vm, 5), (f.a, port)) };
    let ((src, _), (dst, _)) = ends(0);
    let to = |port| ends(port).1;
    let from = ends(0).0;
    let mut options = tcp(from, to(80), ACK);
    let mut datagram = udp(from, to(53)).payload(64);
    datagram.payload[4..6].copy_from_slice(&72u16.to_be_bytes());
    if src.contains(':') {
        options.extensions = vec![(60, vec![0, 1, 4, 0, 0, 0, 0])];
    } else {
        options.options = vec![1; 8];
    }
    let [about, about_nothing] = [from, (src, 6)].map(|from| tcp(to(80), from, ACK).network());
    vec![
        tcp(from, to(80), SYN),
        tcp(from, to(80), ACK).payload(100),
        options,
        udp(from, to(53)).payload(20),
        datagram.fragment(7, 0, 40),
        datagram.fragment(7, 40, 72),
        tcp(from, to(81), SYN),
        sctp(from, to(3868)),
        icmp(src, dst, f.echo, 3, &[]),
        icmp(src, dst, f.unreachable, 0, &about),
        icmp(src, dst, f.unreachable, 0, &about_nothing),
    ]
}

/// What was counted, and what the table of connections says.
#[derive(Debug, PartialEq)]
struct Seen {
    drops: Vec<(DropKey, u64, u64)>,
    flows: Vec<(FlowKey, Flow)>,
}

fn seen(node: &Node) -> Seen {
    let drops = node.datapath.drops().expect("drops").into_iter();
    let steady = |(key, flow): (FlowKey, Flow)| {
        (key, Flow { last_seen: 0, tick: 0, serial: 0, owner: 0, entered_by: 0, ..flow })
    };
    let mut flows: Vec<_> = node.datapath.flows().map(|flow| steady(flow.expect("a flow"))).collect();
    flows.sort_unstable_by_key(|(key, _)| *key);
    Seen { drops: drops.map(|(key, c)| (key, c.packets, c.bytes)).collect(), flows }
}

/// Waits for this connection, which what was sent last begins.
fn arrived(node: &Node, from: (&str, u16), to: (&str, u16)) {
    let end = Instant::now() + DEADLINE;
    while node.flow(from, to, TCP).is_none() {
        assert!(Instant::now() < end, "the last packet does not arrive: {:?}", seen(node));
        thread::yield_now();
    }
}

/// All of it with so many bytes in the linear part: at the pod's hook, and behind an uplink and the stack.
fn meet(linear: usize) -> Seen {
    let names = [format!("pgp{linear}"), format!("pgu{linear}"), format!("pgv{linear}")];
    let [pod, uplink, veth] = names.each_ref().map(String::as_str);
    let mut taps = [pod, uplink].map(Tap::new);
    let mut node = Node::empty();
    node.wire_as(pod, 0);
    let rules = [Port::Tcp80, Port::Udp53].into_iter().fold(Rules::none(), |rules, port| {
        rules.egress(POLICY_A, VM, port, 70).ingress(POLICY_A, VM, port, 71)
    });
    node.apply(&rules.egress(POLICY_A, WORLD, Port::Tcp80, 72).ingress(POLICY_A, WORLD, Port::Tcp80, 73));
    node.datapath.attach_pod(pod, ifindex(pod)).expect("attached");
    for f in FAMILIES {
        for packet in packets(&f, true) {
            let frame = packet.with_mac(MAC_A).frame();
            taps[0].send(&frame, linear);
            // Cut within the headers, and another's address.
            taps[0].send(&frame[..frame.len().min(if f.a == V4.a { 40 } else { 60 })], linear);
        }
        taps[0].send(&tcp((f.b, 5), (f.vm, 80), SYN).with_mac(MAC_A).frame(), linear);
    }
    taps[0].send(&tcp((V4.a, 5), (V4.world, 80), SYN).with_mac(MAC_A).frame(), linear);
    arrived(&node, (V4.a, 5), (V4.world, 80));
    // To the pod: by the uplink, the stack, and the hook of a link that leads to it.
    run("ip", &["link", "add", veth, "type", "veth", "peer", "name", &format!("{veth}p")]);
    // The pod's side is silent.
    fs::write(format!("/proc/sys/net/ipv6/conf/{veth}p/disable_ipv6"), "1").expect("disabled");
    for name in [veth, &format!("{veth}p")] {
        run("ip", &["link", "set", name, "up"]);
    }
    node.wire_as(veth, 0);
    node.datapath.attach_pod(veth, ifindex(veth)).expect("attached");
    node.datapath.attach_uplink(uplink, ifindex(uplink)).expect("attached");
    let mac = MAC_A.map(|byte| format!("{byte:02x}")).join(":");
    for (f, family, length) in [(FAMILIES[0], "-4", "32"), (FAMILIES[1], "-6", "128")] {
        run("ip", &[family, "route", "add", &format!("{}/{length}", f.a), "dev", veth]);
        run("ip", &[family, "neigh", "add", f.a, "lladdr", &mac, "dev", veth, "nud", "permanent"]);
        run("ip", &[family, "route", "add", "default", "dev", uplink]);
    }
    for f in FAMILIES {
        for packet in packets(&f, false) {
            taps[1].send(&packet.frame(), linear);
        }
    }
    taps[1].send(&tcp((V4.world, 5), (V4.a, 80), SYN).frame(), linear);
    arrived(&node, (V4.world, 5), (V4.a, 80));
    let seen = seen(&node);
    node.datapath.detach_pod(pod).expect("detached");
    node.datapath.detach_pod(veth).expect("detached");
    node.datapath.detach_uplink(uplink).expect("detached");
    run("ip", &["link", "del", veth]);
    drop(taps);
    seen
}

fn a_packet_means_the_same_wherever_its_headers_lie() {
    // Routes of its own: in a namespace where no other test has any.
    let apart = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a namespace");
        run("ip", &["link", "add", "pod-b", "type", "veth", "peer", "name", "pod-b-peer"]);
        for file in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            fs::write(format!("/proc/sys/net/{file}"), "1").expect("forwarding");
        }
        let linear = meet(2000);
        assert!(linear.drops.len() >= 4 && linear.flows.len() >= 8, "{linear:?}");
        // The Ethernet header alone, and an end within addresses, within ports.
        for bytes in [14, 28, 36, 56] {
            assert_eq!(meet(bytes), linear, "{bytes} bytes in the linear part");
        }
    };
    if let Err(panic) = thread::spawn(apart).join() {
        resume_unwind(panic);
    }
}
