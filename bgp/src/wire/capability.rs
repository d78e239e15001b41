//! Capabilities of OPEN (RFC 5492).

use super::reader::Reader;
use crate::Family;

mod code {
    pub const MULTIPROTOCOL: u8 = 1;
    pub const ROUTE_REFRESH: u8 = 2;
    pub const GRACEFUL_RESTART: u8 = 64;
    pub const FOUR_OCTET_AS: u8 = 65;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capability {
    /// RFC 4760.
    Multiprotocol(Family),
    /// RFC 2918.
    RouteRefresh,
    /// RFC 4724.
    GracefulRestart(GracefulRestart),
    /// RFC 6793.
    FourOctetAs(u32),
    /// Not known here, of a family that is not ours, or of a length that it cannot have.
    Unknown { code: u8, data: Vec<u8> },
}

/// RFC 4724 section 3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GracefulRestart {
    /// R: the sender has restarted, and its peer need not wait for End-of-RIB before it sends.
    pub restarting: bool,
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

const RESTARTING: u16 = 0x8000;
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
        Some(GracefulRestart { restarting: word & RESTARTING != 0, time: word & TIME, families })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn graceful_restart_has_the_bits_of_rfc_4724() {
        let capability = Capability::GracefulRestart(GracefulRestart {
            restarting: true,
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
        let helper = GracefulRestart { restarting: false, time: 120, families: Vec::new() };
        assert_eq!(restart, Some(Capability::GracefulRestart(helper)));
    }
}
