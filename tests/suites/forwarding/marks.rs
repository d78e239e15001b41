//! What a pod writes on its packets itself.

use crate::support::{accept, alternative, bound, require, stream_for};
use crate::translated::{at, clear, translate};
use bulkhead_ebpf_abi::{ORIGIN_ITSELF, ORIGIN_MASK, ORIGIN_SHIFT, ORIGIN_UNKNOWN};
use bulkhead_lab::{Lab, Result};
use nix::sys::socket::{SockaddrStorage, connect, setsockopt, sockopt};
use std::{
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
};

const STREAMS: u16 = 20880;
const DATAGRAMS: u16 = 9125;
const NODE_PORTS: [u16; 2] = [30082, 30083];

/// None (the node's own), whatever number anybody can have here, the pod itself, unknown; all bits, and Kubernetes' two.
fn marks() -> impl Iterator<Item = u32> {
    let origins = (0..256).chain([ORIGIN_ITSELF, ORIGIN_UNKNOWN]).map(|origin| origin << ORIGIN_SHIFT);
    origins.chain([u32::MAX, !ORIGIN_MASK, 0x4000, 0x8000])
}

/// Nobody waits for an answer.
fn call(to: SocketAddr, mark: u32) -> Result<TcpStream> {
    let stream = TcpStream::from(stream_for(to)?);
    setsockopt(&stream, sockopt::Mark, &mark)?;
    stream.set_nonblocking(true)?;
    // In progress, or refused: either is told by what comes of it.
    let _ = connect(stream.as_raw_fd(), &SockaddrStorage::from(to));
    Ok(stream)
}

fn send(to: SocketAddr, from: IpAddr, mark: u32) -> Result<()> {
    let socket = UdpSocket::bind((from, 0))?;
    setsockopt(&socket, sockopt::Mark, &mark)?;
    socket.send_to(b"let me in", to)?;
    Ok(())
}

/// To a pod that refuses it, by its address and by a port of the node that is masqueraded.
pub fn nobodys_but_the_hooks(lab: &mut Lab) -> Result<()> {
    let (cart, front, db) = (lab.pod("shop/cart-0")?, lab.pod("web/front-0")?, lab.pod("payments/db-0")?);
    let node = &lab.nodes[0];
    let own = |v6: bool| -> IpAddr { if v6 { node.v6.into() } else { node.v4.into() } };
    let dnat = [false, true].into_iter().flat_map(|v6| {
        let of = move |n: usize, port| (at(own(v6), NODE_PORTS[n]), at(alternative(db, v6), port));
        [of(0, STREAMS), of(1, DATAGRAMS)]
    });
    translate(lab, &dnat.collect::<Vec<_>>(), &["ct status dnat".into()])?;
    for v6 in [false, true] {
        let (to, from) = (alternative(db, v6), alternative(cart, v6));
        let listener = db.netns.run(|| Ok(TcpListener::bind((to, STREAMS))?))?;
        let inbox = bound(&db.netns, to, DATAGRAMS)?;
        let calls = cart.netns.run(|| {
            let mut calls = Vec::new();
            for mark in marks() {
                for to in [at(to, DATAGRAMS), at(own(v6), NODE_PORTS[1])] {
                    send(to, from, mark)?;
                }
                for to in [at(to, STREAMS), at(own(v6), NODE_PORTS[0])] {
                    calls.push((mark, to, call(to, mark)?));
                }
            }
            Ok(calls)
        })?;
        // Behind them all those whom the rules admit, by the same ways.
        let admitted = lab.vm.netns.run(|| Ok(TcpStream::connect(at(own(v6), NODE_PORTS[0]))?))?;
        let (_accepted, _) = accept(&listener)?;
        drop(admitted);
        bound(&front.netns, alternative(front, v6), 0)?.send_to(b"admitted", at(to, DATAGRAMS))?;
        for (mark, to, call) in &calls {
            require(call.peer_addr().is_err(), &format!("mark {mark:#x} opens {to}"))?;
        }
        let (_, sender) = inbox.recv_from(&mut [0; 16])?;
        require(sender.ip() == alternative(front, v6), &format!("{sender} is heard first"))?;
    }
    clear(lab)
}
