//! What only real interfaces show: the `ifb` that paces what leaves a pod gives the packet back to where it was taken.

use crate::{
    node::{A, End, FAMILIES, Family, MAC_A, NODE, Node, POLICY_A, POLICY_B, V4, ifindex},
    packet::{UDP, udp},
    rules::{Port, Rules},
    sandbox::run,
};
use bulkhead_daemon::datapath::PodMaps;
use bulkhead_ebpf_abi::{DROP_POLICY, DROP_TRUNCATED, ORIGIN_SHIFT};
use std::{
    io,
    mem::{size_of, zeroed},
    net::{IpAddr, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

crate::trials! {
    interfaces:
    what_leaves_a_pod_is_paced_by_its_ifb_and_comes_back_marked_and_decided_once,
    a_packet_cut_within_its_ip_header_is_dropped,
    a_pods_call_by_a_vlan_is_answered,
}

const DEADLINE: Duration = Duration::from_secs(5);

/// The host's side of a pod's link, the pod's side, and the pod's `ifb` with a `tbf`.
struct Link;

impl Link {
    const HOST: &str = "pace0";
    const POD: &str = "pace0p";
    const IFB: &str = "pace0i";

    fn new() -> Self {
        run("ip", &["link", "add", Self::HOST, "type", "veth", "peer", "name", Self::POD]);
        run("ip", &["link", "add", Self::IFB, "type", "ifb"]);
        for name in [Self::POD, Self::IFB, Self::HOST] {
            run("ip", &["link", "set", name, "up"]);
        }
        let tbf = ["rate", "100mbit", "burst", "20kb", "latency", "50ms"];
        run("tc", &[&["qdisc", "add", "dev", Self::IFB, "root", "tbf"], &tbf[..]].concat());
        for f in FAMILIES {
            let length = if f.a == V4.a { 32 } else { 128 };
            run("ip", &["address", "add", &format!("{}/{length}", f.node), "dev", Self::HOST, "nodad"]);
            run("ip", &["route", "add", &format!("{}/{length}", f.a), "dev", Self::HOST]);
        }
        Self
    }

    fn paced(&self) -> u64 {
        let text = run("tc", &["-s", "-j", "qdisc", "show", "dev", Self::IFB]);
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        value[0]["packets"].as_u64().expect("a count")
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        run("ip", &["link", "del", Self::HOST]);
        run("ip", &["link", "del", Self::IFB]);
    }
}

fn mac_of(name: &str) -> [u8; 6] {
    let text = run("ip", &["-j", "link", "show", "dev", name]);
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let octets: Vec<u8> = value[0]["address"]
        .as_str()
        .expect("an address")
        .split(':')
        .map(|octet| u8::from_str_radix(octet, 16).expect("hexadecimal"))
        .collect();
    octets.try_into().expect("six octets")
}

/// Puts a frame on the pod's side of the link, as the pod would.
fn transmit(interface: &str, frame: &[u8]) {
    // SAFETY: plain numbers; the descriptor is ours.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: all zero is an address.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = ifindex(interface) as i32;
    // SAFETY: frame and address outlive the call.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    assert_eq!(sent, frame.len() as isize, "{}", io::Error::last_os_error());
}

/// The next datagram's mark.
fn receive_mark(socket: &UdpSocket) -> u32 {
    const SO_RCVMARK: libc::c_int = 75;
    let (mut data, mut control) = ([0u8; 64], [0u64; 8]);
    let on: libc::c_int = 1;
    // SAFETY: every buffer outlives its call; the kernel writes one control message of four bytes at most.
    unsafe {
        let set =
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_RCVMARK, (&raw const on).cast(), 4);
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
        let mut part = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
        let mut message: libc::msghdr = zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of::<[u64; 8]>();
        let read = libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0);
        assert!(read >= 0, "nothing arrived: {}", io::Error::last_os_error());
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        assert!(!header.is_null() && (*header).cmsg_type == libc::SO_MARK, "no mark came with it");
        libc::CMSG_DATA(header).cast::<u32>().read_unaligned()
    }
}

fn datagram(f: Family, port: u16, to: [u8; 6]) -> Vec<u8> {
    let mut packet = udp((f.a, 5), (f.node, port));
    packet.checksum_udp();
    let mut frame = packet.with_mac(MAC_A).frame();
    frame[..6].copy_from_slice(&to);
    frame
}

/// Packets dropped for this reason.
fn dropped(node: &Node, reason: u8) -> u64 {
    let drops = node.datapath.drops().expect("drops");
    drops.iter().filter(|(key, _)| key.reason == reason).map(|(_, counter)| counter.packets).sum()
}

fn what_leaves_a_pod_is_paced_by_its_ifb_and_comes_back_marked_and_decided_once() {
    let link = Link::new();
    let mut node = Node::empty();
    node.wire_as(Link::HOST, ifindex(Link::IFB));
    node.apply(&Rules::none().egress(POLICY_A, NODE, Port::Udp53, 70));
    node.datapath.attach_pod(Link::HOST, ifindex(Link::HOST)).expect("attached");
    let mac = mac_of(Link::HOST);
    for (i, f) in FAMILIES.into_iter().enumerate() {
        let address: IpAddr = f.node.parse().expect("an address");
        let [allowed, denied] = [53, 54].map(|port| {
            let socket = UdpSocket::bind((address, port)).expect("a socket");
            socket.set_read_timeout(Some(DEADLINE)).expect("a deadline");
            socket
        });
        transmit(Link::POD, &datagram(f, 54, mac));
        transmit(Link::POD, &datagram(f, 53, mac));
        assert_eq!(receive_mark(&allowed), A << ORIGIN_SHIFT);
        denied.set_nonblocking(true).expect("set");
        assert!(denied.recv(&mut [0; 64]).is_err(), "what came first and was refused never arrived");
        assert!(link.paced() > i as u64);
        assert_eq!(node.flow((f.a, 5), (f.node, 53), UDP).expect("an entry").packets, 1);
    }
    assert_eq!(dropped(&node, DROP_POLICY), 2);
    node.datapath.detach_pod(Link::HOST).expect("detached");
}

/// Here, because a program's test-run refuses such packets itself.
fn a_packet_cut_within_its_ip_header_is_dropped() {
    const POD: &str = "cut0";
    run("ip", &["link", "add", POD, "type", "veth", "peer", "name", "cut0p"]);
    for name in [POD, "cut0p"] {
        run("ip", &["link", "set", name, "up"]);
    }
    let mut node = Node::empty();
    node.wire_as(POD, 0);
    node.datapath.attach_pod(POD, ifindex(POD)).expect("attached");
    let mut sent = 0;
    for f in FAMILIES {
        let header = if f.a == V4.a { 34 } else { 54 };
        for length in 15..header {
            transmit("cut0p", &datagram(f, 53, [2, 0, 0, 0, 0, 1])[..length]);
            sent += 1;
        }
    }
    let end = Instant::now() + DEADLINE;
    while dropped(&node, DROP_TRUNCATED) < sent && Instant::now() < end {
        std::thread::yield_now();
    }
    assert_eq!(dropped(&node, DROP_TRUNCATED), sent);
    node.datapath.detach_pod(POD).expect("detached");
    run("ip", &["link", "del", POD]);
}

/// Here, because a program's test-run gives no packet a tag that was taken off.
fn a_pods_call_by_a_vlan_is_answered() {
    const UPLINK: &str = "tagged0";
    run("ip", &["link", "add", UPLINK, "type", "veth", "peer", "name", "tagged0p"]);
    for name in [UPLINK, "tagged0p"] {
        run("ip", &["link", "set", name, "up"]);
    }
    let mut node = Node::new(Rules::none());
    let range = "10.0.9.0/24".parse().expect("a range");
    node.datapath.set_range_policies(&[(range, POLICY_B)].into()).expect("set");
    node.datapath.attach_uplink(UPLINK, ifindex(UPLINK)).expect("attached");
    let (pod, own) = (("10.0.9.9", 5), (V4.node, 8053));
    let is_answered = || node.leave(Some("pod-a"), &udp(own, pod), A).end == End::Next;
    assert!(!is_answered());
    let mut call = udp(pod, own).frame();
    call.splice(12..12, [0x81, 0, 0, 100]);
    transmit("tagged0p", &call);
    let end = Instant::now() + DEADLINE;
    while !is_answered() && Instant::now() < end {
        std::thread::yield_now();
    }
    assert!(is_answered());
    node.datapath.detach_uplink(UPLINK).expect("detached");
    run("ip", &["link", "del", UPLINK]);
}
