//! Where a frame is met, and what becomes of it there.

use bulkhead_daemon::datapath::Hook;
use bulkhead_ebpf_abi::{DropKey, FlowKey, ORIGIN_NONE, PATH_DIRECT};

/// Their interfaces; and the uplink.
pub const PODS: [&str; 2] = ["pod-a", "pod-b"];
pub const UPLINK: &str = "up0";

/// Where a frame is met.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub hook: Hook,
    /// Whose hook; on an uplink nobody's.
    pub pod: usize,
    /// The mark that it comes with.
    pub origin: u32,
    /// The interface by which it came into the host.
    pub from: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Dropped,
    /// On to the stack.
    Stack,
    /// Into the other pod.
    Straight,
}

/// What the entry of a passed packet's flow says of one end.
#[derive(Clone, Debug, PartialEq)]
pub struct Admitted {
    pub key: FlowKey,
    pub dir: u32,
    pub rule: u32,
    pub origin: u16,
    pub service_port: u16,
    /// `FLOW_*` bits.
    pub flags: u8,
    /// `PATH_*`.
    pub path: u8,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub way: Way,
    /// Refusals: such as are only recorded, and last the one that the packet is dropped for.
    pub counted: Vec<DropKey>,
    /// Of each end that was asked.
    pub admitted: Vec<Admitted>,
    /// The mark with which it goes on to the stack.
    pub origin: u32,
}

impl Outcome {
    pub fn stack() -> Self {
        Self { way: Way::Stack, counted: Vec::new(), admitted: Vec::new(), origin: ORIGIN_NONE }
    }

    pub fn dropped(key: DropKey) -> Self {
        Self { way: Way::Dropped, counted: vec![key], ..Self::stack() }
    }

    /// Has it made or met a connection that passes the stack by?
    pub fn is_direct(&self) -> bool {
        self.admitted.iter().any(|a| a.path == PATH_DIRECT)
    }
}

pub fn refusal(reason: u8, rule: u32, policy: u32, dir: u32) -> DropKey {
    DropKey { rule, policy, reason, dir: dir as u8, reserved: 0 }
}
