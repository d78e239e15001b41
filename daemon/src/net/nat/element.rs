//! Elements of the sets and maps, in the kernel's own octets. Pure.

use super::{
    HostPort,
    expression::{octets, value},
    wire::{self, Attributes},
};
use std::net::SocketAddr;

const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const ELEMENT_FLAGS: u16 = 3;
const ELEMENT_KEY_END: u16 = 10;
const INTERVAL_END: u32 = 1;

/// One element, in the kernel's own octets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    pub key: Vec<u8>,
    /// Of a pair of intervals.
    pub key_end: Option<Vec<u8>>,
    /// Behind the last address of an interval.
    pub is_end: bool,
    pub data: Option<Vec<u8>>,
}

/// Fields stand in registers, which are four octets each.
fn in_registers(octets: &[u8]) -> Vec<u8> {
    let mut padded = octets.to_vec();
    padded.resize(octets.len().next_multiple_of(4), 0);
    padded
}

impl Element {
    pub fn of(key: Vec<u8>) -> Self {
        Self { key, key_end: None, is_end: false, data: None }
    }

    pub fn of_port(port: &HostPort, to: &SocketAddr) -> Self {
        let mut key = if port.address.is_unspecified() { Vec::new() } else { octets(port.address) };
        key.extend(in_registers(&[port.protocol.number()]));
        key.extend(in_registers(&port.port.to_be_bytes()));
        let mut data = octets(to.ip());
        data.extend(in_registers(&to.port().to_be_bytes()));
        Self { data: Some(data), ..Self::of(key) }
    }

    pub fn attributes(&self, key_only: bool) -> Attributes {
        let mut all = Attributes::new().nest(ELEMENT_KEY, value(&self.key));
        if let Some(end) = &self.key_end {
            all = all.nest(ELEMENT_KEY_END, value(end));
        }
        if self.is_end {
            all = all.u32(ELEMENT_FLAGS, INTERVAL_END);
        }
        match &self.data {
            Some(data) if !key_only => all.nest(ELEMENT_DATA, value(data)),
            _ => all,
        }
    }

    pub fn read(attributes: &[u8]) -> Option<Self> {
        let octets = |kind| Some(wire::find(wire::find(attributes, kind)?, 1)?.to_vec());
        let flags = wire::find(attributes, ELEMENT_FLAGS).map_or(0, wire::number);
        Some(Self {
            key: octets(ELEMENT_KEY)?,
            key_end: octets(ELEMENT_KEY_END),
            is_end: flags & INTERVAL_END != 0,
            data: octets(ELEMENT_DATA),
        })
    }
}
