//! OPEN (RFC 4271 section 4.2), long ones as in RFC 9072. Only its form is judged here; whether it is acceptable is the state machine's.

use super::as_path::AS_TRANS;
use super::capability::Capability;
use super::notification::{Notification, code, open};
use super::reader::Reader;
use std::net::Ipv4Addr;

const VERSION: u8 = 4;
const CAPABILITIES: u8 = 2;
/// RFC 9072: in place of the first parameter's type, it says that lengths have two octets.
const EXTENDED: u8 = 255;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// From the four-octet AS capability where there is one, which then is among `capabilities`.
    pub asn: u32,
    /// Seconds.
    pub hold_time: u16,
    pub router_id: Ipv4Addr,
    pub capabilities: Vec<Capability>,
}

impl Open {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut capabilities = Vec::new();
        for capability in &self.capabilities {
            capability.encode(&mut capabilities);
        }
        let mut out = vec![VERSION];
        out.extend_from_slice(&u16::try_from(self.asn).unwrap_or(AS_TRANS).to_be_bytes());
        out.extend_from_slice(&self.hold_time.to_be_bytes());
        out.extend_from_slice(&self.router_id.octets());
        match u8::try_from(capabilities.len() + 2) {
            Ok(2) => out.push(0),
            Ok(length) => out.extend_from_slice(&[length, CAPABILITIES, length - 2]),
            // Not all peers read this form (GoBGP 3 does not), so that it comes only where it must.
            Err(_) => {
                let length = capabilities.len() as u16;
                out.extend_from_slice(&[EXTENDED, EXTENDED]);
                out.extend_from_slice(&(length + 3).to_be_bytes());
                out.push(CAPABILITIES);
                out.extend_from_slice(&length.to_be_bytes());
            }
        }
        out.extend_from_slice(&capabilities);
        out
    }

    pub(super) fn decode(body: &[u8]) -> Result<Open, Notification> {
        let malformed = || Notification::new(code::OPEN, open::UNSPECIFIC);
        let mut reader = Reader::new(body);
        let version = reader.u8().ok_or_else(malformed)?;
        if version != VERSION {
            let supported = u16::from(VERSION).to_be_bytes();
            return Err(Notification::with_data(code::OPEN, open::UNSUPPORTED_VERSION, supported));
        }
        let two_octet_as = reader.u16().ok_or_else(malformed)?;
        let hold_time = reader.u16().ok_or_else(malformed)?;
        let router_id = reader.array::<4>().map(Ipv4Addr::from).ok_or_else(malformed)?;
        let long = matches!(reader.rest(), [length, EXTENDED, ..] if *length != 0);
        let parameters = if long {
            // The length in one octet has no meaning then, whatever it is (RFC 9072 section 2).
            reader.take(2).and_then(|_| reader.counted16())
        } else {
            reader.counted8()
        };
        let mut parameters = parameters.ok_or_else(malformed)?;
        if !reader.is_empty() {
            return Err(malformed());
        }
        let mut capabilities = Vec::new();
        while !parameters.is_empty() {
            let kind = parameters.u8().ok_or_else(malformed)?;
            let value = if long { parameters.counted16() } else { parameters.counted8() };
            let mut value = value.ok_or_else(malformed)?;
            if kind != CAPABILITIES {
                return Err(Notification::new(code::OPEN, open::UNSUPPORTED_PARAMETER));
            }
            while !value.is_empty() {
                capabilities.push(Capability::decode(&mut value).ok_or_else(malformed)?);
            }
        }
        let four_octet_as = capabilities.iter().find_map(|capability| match capability {
            Capability::FourOctetAs(asn) => Some(*asn),
            _ => None,
        });
        let asn = four_octet_as.unwrap_or(u32::from(two_octet_as));
        Ok(Open { asn, hold_time, router_id, capabilities })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(asn: u32) -> Open {
        Open {
            asn,
            hold_time: 90,
            router_id: Ipv4Addr::new(10, 0, 0, 1),
            capabilities: vec![Capability::RouteRefresh, Capability::FourOctetAs(asn)],
        }
    }

    #[test]
    fn a_long_as_number_is_as_trans_in_the_old_field() {
        let bytes = open(4_200_000_000).encode();
        assert_eq!(bytes[1..3], 23456u16.to_be_bytes());
        assert_eq!(Open::decode(&bytes), Ok(open(4_200_000_000)));
        assert_eq!(open(65001).encode()[1..3], 65001u16.to_be_bytes());
    }

    #[test]
    fn another_version_is_2_1_with_ours_as_data() {
        let mut bytes = open(1).encode();
        bytes[0] = 3;
        assert_eq!(Open::decode(&bytes), Err(Notification::with_data(2, 1, [0, 4])));
    }

    #[test]
    fn another_optional_parameter_is_2_4() {
        let bytes = [&open(1).encode()[..9], &[3, 1, 1, 0]].concat();
        assert_eq!(Open::decode(&bytes), Err(Notification::new(2, 4)));
    }

    #[test]
    fn parameters_whose_lengths_lie_are_2_0() {
        let head = &open(1).encode()[..9];
        for tail in [
            vec![9],              // parameters longer than the message
            vec![0, 1],           // octets after the parameters
            vec![2, 2, 7],        // a parameter longer than the parameters
            vec![4, 2, 2, 65, 4], // a capability longer than its parameter
            vec![3, 2, 1, 65],    // a capability without a length
            vec![1, 2],           // a parameter without a length
        ] {
            let bytes = [head, &tail].concat();
            assert_eq!(Open::decode(&bytes), Err(Notification::new(2, 0)), "{tail:?}");
        }
    }

    #[test]
    fn an_open_without_capabilities_is_one() {
        let plain = Open { capabilities: Vec::new(), ..open(65001) };
        assert_eq!(Open::decode(&plain.encode()), Ok(plain));
    }

    #[test]
    fn an_open_that_is_too_long_takes_the_form_of_rfc_9072_and_no_other_does() {
        let with = |count: usize| Open {
            capabilities: (0..count).map(|_| Capability::FourOctetAs(7)).collect(),
            ..open(7)
        };
        let short = with(42);
        assert_eq!(short.encode()[9..12], [254, 2, 252]);
        let long = with(43);
        assert_eq!(long.encode()[9..16], [255, 255, 1, 5, 2, 1, 2]);
        for open in [short, long] {
            assert_eq!(Open::decode(&open.encode()), Ok(open));
        }
        let mut any_length = with(43).encode();
        any_length[9] = 9;
        assert_eq!(Open::decode(&any_length), Ok(with(43)));
    }
}
