//! What a rule looks at and does, one step each: `nft_expr` of the kernel, over registers of four octets.

use super::wire::Attributes;
use std::net::IpAddr;

/// `NFT_REG32_00` and those behind it.
pub const fn register(n: u32) -> u32 {
    8 + n
}

/// Where a header lies that `Payload` reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    Network = 1,
    Transport = 2,
}

/// What the packet is said to be beside its headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meta {
    InterfaceIn = 6,
    InterfaceOut = 7,
    Protocol = 16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// Octets of a header into registers.
    Payload {
        base: Base,
        offset: u32,
        length: u32,
        to: u32,
    },
    Meta {
        what: Meta,
        to: u32,
    },
    /// Leaves of a register these bits.
    Mask {
        register: u32,
        bits: Vec<u8>,
    },
    /// Goes on where the register begins with these octets, or where it does not.
    Compare {
        register: u32,
        equal: bool,
        with: Vec<u8>,
    },
    /// Kind of the destination address (`RTN_*`, in the machine's order) into a register.
    KindOfDestination {
        to: u32,
    },
    /// Goes on where registers are in the set, or are not.
    InSet {
        set: &'static str,
        register: u32,
        inside: bool,
    },
    /// Goes on where registers are in the map; what stands there goes into other registers.
    FromMap {
        map: &'static str,
        register: u32,
        to: u32,
    },
    Load {
        value: Vec<u8>,
        to: u32,
    },
    Destination {
        v6: bool,
        address: u32,
        port: u32,
    },
    Source {
        v6: bool,
        address: u32,
    },
    /// The outgoing interface's address, and a port that is chosen at random: of two flows at the same instant the kernel
    /// would give both the next free one, and drop one of them.
    Masquerade,
    Accept,
    Drop,
}

const ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const REGISTER_VERDICT: u32 = 0;
const SNAT: u32 = 0;
const DNAT: u32 = 1;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`.
const RANDOM: u32 = 1 << 4;
/// `NFT_FIB_RESULT_ADDRTYPE`, `NFTA_FIB_F_DADDR`.
const FIB_KIND: u32 = 3;
const FIB_DESTINATION: u32 = 2;

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
pub const fn family(v6: bool) -> u8 {
    if v6 { 10 } else { 2 }
}

pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

pub fn value(octets: &[u8]) -> Attributes {
    Attributes::new().bytes(DATA_VALUE, octets)
}

impl Expression {
    fn named(&self) -> (&'static str, Attributes) {
        let new = Attributes::new;
        let verdict = |code| {
            let verdict = new().nest(DATA_VERDICT, new().u32(VERDICT_CODE, code));
            ("immediate", new().u32(1, REGISTER_VERDICT).nest(2, verdict))
        };
        match self {
            Self::Payload { base, offset, length, to } => {
                ("payload", new().u32(1, *to).u32(2, *base as u32).u32(3, *offset).u32(4, *length))
            }
            Self::Meta { what, to } => ("meta", new().u32(1, *to).u32(2, *what as u32)),
            Self::Mask { register, bits } => {
                let length = bits.len() as u32;
                let mask = new().u32(1, *register).u32(2, *register).u32(3, length).nest(4, value(bits));
                ("bitwise", mask.nest(5, value(&vec![0; bits.len()])))
            }
            Self::Compare { register, equal, with } => {
                ("cmp", new().u32(1, *register).u32(2, u32::from(!equal)).nest(3, value(with)))
            }
            Self::KindOfDestination { to } => {
                ("fib", new().u32(1, *to).u32(2, FIB_KIND).u32(3, FIB_DESTINATION))
            }
            Self::InSet { set, register, inside } => {
                ("lookup", new().text(1, set).u32(2, *register).u32(5, u32::from(!inside)))
            }
            Self::FromMap { map, register, to } => {
                ("lookup", new().text(1, map).u32(2, *register).u32(3, *to))
            }
            Self::Load { value: octets, to } => ("immediate", new().u32(1, *to).nest(2, value(octets))),
            Self::Destination { v6, address, port } => {
                let nat = new().u32(1, DNAT).u32(2, family(*v6).into()).u32(3, *address);
                ("nat", nat.u32(5, *port))
            }
            Self::Source { v6, address } => {
                ("nat", new().u32(1, SNAT).u32(2, family(*v6).into()).u32(3, *address))
            }
            Self::Masquerade => ("masq", new().u32(1, RANDOM)),
            Self::Accept => verdict(NF_ACCEPT),
            Self::Drop => verdict(NF_DROP),
        }
    }
}

/// The list as a rule has it.
pub fn list(expressions: &[Expression]) -> Attributes {
    expressions.iter().fold(Attributes::new(), |list, expression| {
        let (name, data) = expression.named();
        list.nest(ELEMENT, Attributes::new().text(EXPRESSION_NAME, name).nest(EXPRESSION_DATA, data))
    })
}
