//! Capabilities of OPEN (RFC 5492).

use super::reader::Reader;
use crate::Family;

mod code {
    pub const MULTIPROTOCOL: u8 = 1;
    pub const ROUTE_REFRESH: u8 = 2;
    pub const EXTENDED_NEXT_HOP: u8 = 5;
    pub const EXTENDED_MESSAGE: u8 = 6;
    pub const GRACEFUL_RESTART: u8 = 64;
    pub const FOUR_OCTET_AS: u8 = 65;
    pub const ADD_PATH: u8 = 69;
    pub const ENHANCED_REFRESH: u8 = 70;
    pub const LONG_LIVED: u8 = 71;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capability {
    /// RFC 4760.
    Multiprotocol(Family),
    /// RFC 2918.
    RouteRefresh,
    /// RFC 8950: families whose next hop may be an IPv6 address, though they are not IPv6 themselves.
    ExtendedNextHop(Vec<Family>),
    /// RFC 8654: messages may have 65,535 octets.
    ExtendedMessage,
    /// RFC 4724.
    GracefulRestart(GracefulRestart),
    /// RFC 6793.
    FourOctetAs(u32),
    /// RFC 7911.
    AddPath(Vec<AddPath>),
    /// RFC 7313: beginning and end of an answer to a refresh are marked.
    EnhancedRefresh,
    /// RFC 9494. No family: the sender only helps.
    LongLived(Vec<LongLived>),
    /// Not known here, of a family that is not ours, or of a length that it cannot have.
    Unknown { code: u8, data: Vec<u8> },
}

/// RFC 4724 section 3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GracefulRestart {
    /// R: the sender has restarted, and its peer need not wait for End-of-RIB before it sends.
    pub restarting: bool,
    /// N (RFC 8538): a NOTIFICATION other than a hard reset is a restart as well.
    pub notification: bool,
    /// Seconds, 12 bits: how long routes are kept after the session is lost.
    pub time: u16,
    /// None: the sender only helps others to restart.
    pub families: Vec<RestartFamily>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartFamily {
    pub family: Family,
    /// F: what was forwarded before the session was lost still is.
    pub forwarding: bool,
}

/// How many routes a peer says for one prefix (RFC 7911 section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddPath {
    pub family: Family,
    pub receive: bool,
    pub send: bool,
}

/// RFC 9494 section 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongLived {
    pub family: Family,
    pub forwarding: bool,
    /// Seconds, 24 bits, beginning when the restart time is over.
    pub time: u32,
}

const RESTARTING: u16 = 0x8000;
const NOTIFICATION: u16 = 0x4000;
const TIME: u16 = 0x0fff;
const FORWARDING: u8 = 0x80;

impl Capability {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let (code, value) = match self {
            Capability::Multiprotocol(family) => {
                let [high, low] = family.afi().to_be_bytes();
                (code::MULTIPROTOCOL, vec![high, low, 0, family.safi()])
            }
            Capability::RouteRefresh => (code::ROUTE_REFRESH, Vec::new()),
            Capability::GracefulRestart(restart) => (code::GRACEFUL_RESTART, restart.encode()),
            Capability::FourOctetAs(asn) => (code::FOUR_OCTET_AS, asn.to_be_bytes().to_vec()),
            Capability::ExtendedNextHop(families) => {
                (code::EXTENDED_NEXT_HOP, families.iter().flat_map(|family| over_ipv6(*family)).collect())
            }
            Capability::ExtendedMessage => (code::EXTENDED_MESSAGE, Vec::new()),
            Capability::AddPath(families) => {
                (code::ADD_PATH, families.iter().flat_map(AddPath::encode).collect())
            }
            Capability::EnhancedRefresh => (code::ENHANCED_REFRESH, Vec::new()),
            Capability::LongLived(families) => {
                (code::LONG_LIVED, families.iter().flat_map(LongLived::encode).collect())
            }
            Capability::Unknown { code, data } => (*code, data.clone()),
        };
        let value = &value[..value.len().min(usize::from(u8::MAX))];
        out.extend_from_slice(&[code, value.len() as u8]);
        out.extend_from_slice(value);
    }

    /// `None` where the field ends inside a capability.
    pub(super) fn decode(reader: &mut Reader<'_>) -> Option<Capability> {
        let code = reader.u8()?;
        let value = reader.counted8()?.rest();
        let known = match (code, value) {
            (code::MULTIPROTOCOL, &[high, low, _, safi]) => {
                Family::from_codes(u16::from_be_bytes([high, low]), safi).map(Capability::Multiprotocol)
            }
            (code::ROUTE_REFRESH, []) => Some(Capability::RouteRefresh),
            (code::GRACEFUL_RESTART, _) => GracefulRestart::decode(value).map(Capability::GracefulRestart),
            (code::EXTENDED_NEXT_HOP, _) => decode_next_hops(value).map(Capability::ExtendedNextHop),
            (code::EXTENDED_MESSAGE, []) => Some(Capability::ExtendedMessage),
            (code::ADD_PATH, _) => decode_each(value, AddPath::decode).map(Capability::AddPath),
            (code::ENHANCED_REFRESH, []) => Some(Capability::EnhancedRefresh),
            (code::LONG_LIVED, _) => decode_each(value, LongLived::decode).map(Capability::LongLived),
            (code::FOUR_OCTET_AS, &[a, b, c, d]) => {
                Some(Capability::FourOctetAs(u32::from_be_bytes([a, b, c, d])))
            }
            _ => None,
        };
        Some(known.unwrap_or_else(|| Capability::Unknown { code, data: value.to_vec() }))
    }
}

impl GracefulRestart {
    fn encode(&self) -> Vec<u8> {
        let flags = if self.restarting { RESTARTING } else { 0 };
        let flags = if self.notification { flags | NOTIFICATION } else { flags };
        let mut out = (flags | self.time.min(TIME)).to_be_bytes().to_vec();
        for RestartFamily { family, forwarding } in &self.families {
            out.extend_from_slice(&family.afi().to_be_bytes());
            out.extend_from_slice(&[family.safi(), if *forwarding { FORWARDING } else { 0 }]);
        }
        out
    }

    fn decode(value: &[u8]) -> Option<GracefulRestart> {
        let mut reader = Reader::new(value);
        let word = reader.u16()?;
        let mut families = Vec::new();
        while !reader.is_empty() {
            let (afi, safi, flags) = (reader.u16()?, reader.u8()?, reader.u8()?);
            if let Some(family) = Family::from_codes(afi, safi) {
                families.push(RestartFamily { family, forwarding: flags & FORWARDING != 0 });
            }
        }
        Some(GracefulRestart {
            restarting: word & RESTARTING != 0,
            notification: word & NOTIFICATION != 0,
            time: word & TIME,
            families,
        })
    }
}

impl AddPath {
    const RECEIVE: u8 = 1;
    const SEND: u8 = 2;

    fn encode(&self) -> [u8; 4] {
        let [high, low] = self.family.afi().to_be_bytes();
        let receive = if self.receive { Self::RECEIVE } else { 0 };
        let send = if self.send { Self::SEND } else { 0 };
        [high, low, self.family.safi(), receive | send]
    }

    /// RFC 7911 section 4: an entry of any other value is passed over.
    fn decode([high, low, safi, mode]: [u8; 4]) -> Option<AddPath> {
        let family = Family::from_codes(u16::from_be_bytes([high, low]), safi)?;
        let (receive, send) = (mode & Self::RECEIVE != 0, mode & Self::SEND != 0);
        (1..=3).contains(&mode).then_some(AddPath { family, receive, send })
    }
}

impl LongLived {
    fn encode(&self) -> [u8; 7] {
        let [high, low] = self.family.afi().to_be_bytes();
        let [_, a, b, c] = self.time.min(0x00ff_ffff).to_be_bytes();
        [high, low, self.family.safi(), if self.forwarding { FORWARDING } else { 0 }, a, b, c]
    }

    fn decode([high, low, safi, flags, a, b, c]: [u8; 7]) -> Option<LongLived> {
        let family = Family::from_codes(u16::from_be_bytes([high, low]), safi)?;
        let forwarding = flags & FORWARDING != 0;
        Some(LongLived { family, forwarding, time: u32::from_be_bytes([0, a, b, c]) })
    }
}

/// Entries of fixed length, of which those that mean nothing here are passed over; `None` where the length
/// is no multiple.
fn decode_each<const N: usize, T>(value: &[u8], decode: fn([u8; N]) -> Option<T>) -> Option<Vec<T>> {
    let (entries, rest) = value.as_chunks::<N>();
    rest.is_empty().then(|| entries.iter().filter_map(|entry| decode(*entry)).collect())
}

/// Family, SAFI in two octets, AFI of the next hop.
fn over_ipv6(family: Family) -> [u8; 6] {
    let [high, low] = family.afi().to_be_bytes();
    [high, low, 0, family.safi(), 0, 2]
}

fn decode_next_hops(value: &[u8]) -> Option<Vec<Family>> {
    decode_each(value, |[high, low, zero, safi, next_high, next_low]: [u8; 6]| {
        let family = Family::from_codes(u16::from_be_bytes([high, low]), safi)?;
        (zero == 0 && [next_high, next_low] == [0, 2]).then_some(family)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn graceful_restart_has_the_bits_of_rfc_4724() {
        let capability = Capability::GracefulRestart(GracefulRestart {
            restarting: true,
            notification: false,
            time: 60,
            families: vec![
                RestartFamily { family: Family::Ipv4Unicast, forwarding: true },
                RestartFamily { family: Family::Ipv6Unicast, forwarding: false },
            ],
        });
        let mut bytes = Vec::new();
        capability.encode(&mut bytes);
        assert_eq!(bytes, [64, 10, 0x80, 60, 0, 1, 1, 0x80, 0, 2, 1, 0]);
        assert_eq!(Capability::decode(&mut Reader::new(&bytes)), Some(capability));
    }

    #[test]
    fn a_capability_of_impossible_length_is_unknown_and_one_cut_short_is_none() {
        let odd = Capability::decode(&mut Reader::new(&[65, 3, 0, 0, 1]));
        assert_eq!(odd, Some(Capability::Unknown { code: 65, data: vec![0, 0, 1] }));
        assert_eq!(Capability::decode(&mut Reader::new(&[65, 4, 0, 0, 1])), None);
        assert_eq!(Capability::decode(&mut Reader::new(&[65])), None);
    }

    #[test]
    fn other_families_are_passed_over() {
        let vpn = Capability::decode(&mut Reader::new(&[1, 4, 0, 1, 0, 128]));
        assert_eq!(vpn, Some(Capability::Unknown { code: 1, data: vec![0, 1, 0, 128] }));
        let restart = Capability::decode(&mut Reader::new(&[64, 6, 0, 120, 0, 1, 128, 0x80]));
        let helper =
            GracefulRestart { restarting: false, notification: false, time: 120, families: Vec::new() };
        assert_eq!(restart, Some(Capability::GracefulRestart(helper)));
    }

    #[test]
    fn what_a_capability_says_is_read_as_its_rfc_writes_it() {
        let (ipv4, ipv6) = (Family::Ipv4Unicast, Family::Ipv6Unicast);
        let cases: [(Capability, &[u8]); 6] = [
            (Capability::ExtendedNextHop(vec![ipv4]), &[5, 6, 0, 1, 0, 1, 0, 2]),
            (Capability::ExtendedMessage, &[6, 0]),
            (
                Capability::AddPath(vec![
                    AddPath { family: ipv4, receive: true, send: false },
                    AddPath { family: ipv6, receive: true, send: true },
                ]),
                &[69, 8, 0, 1, 1, 1, 0, 2, 1, 3],
            ),
            (Capability::EnhancedRefresh, &[70, 0]),
            (
                Capability::LongLived(vec![LongLived { family: ipv6, forwarding: true, time: 86_400 }]),
                &[71, 7, 0, 2, 1, 0x80, 1, 0x51, 0x80],
            ),
            (
                Capability::GracefulRestart(GracefulRestart {
                    restarting: false,
                    notification: true,
                    time: 60,
                    families: Vec::new(),
                }),
                &[64, 2, 0x40, 60],
            ),
        ];
        for (capability, expected) in cases {
            let mut bytes = Vec::new();
            capability.encode(&mut bytes);
            assert_eq!(bytes, expected);
            assert_eq!(Capability::decode(&mut Reader::new(&bytes)), Some(capability));
        }
    }

    #[test]
    fn entries_that_mean_nothing_here_are_passed_over_and_odd_lengths_are_not_believed() {
        let read = |bytes: &[u8]| Capability::decode(&mut Reader::new(bytes));
        assert_eq!(read(&[69, 8, 0, 1, 1, 0, 0, 1, 128, 3]), Some(Capability::AddPath(Vec::new())));
        assert_eq!(read(&[5, 6, 0, 1, 0, 1, 0, 1]), Some(Capability::ExtendedNextHop(Vec::new())));
        for odd in [&[69, 3, 0, 1, 1][..], &[71, 1, 0], &[5, 1, 0], &[6, 1, 0], &[70, 1, 0]] {
            let unknown = Capability::Unknown { code: odd[0], data: odd[2..].to_vec() };
            assert_eq!(read(odd), Some(unknown));
        }
    }
}
