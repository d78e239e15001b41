//! Network layer reachability information: prefixes as one octet of length and as many octets as it needs
//! (RFC 4271 section 4.3, RFC 4760 section 5), each after its path identifier where RFC 7911 is agreed on.

use super::reader::Reader;
use crate::Family;
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Octets that `prefix` takes in a message.
pub fn encoded_len(prefix: &IpNetwork) -> usize {
    1 + usize::from(prefix.prefix()).div_ceil(8)
}

pub(super) fn encode(prefix: &IpNetwork, out: &mut Vec<u8>) {
    let octets = usize::from(prefix.prefix()).div_ceil(8);
    out.push(prefix.prefix());
    match prefix.network() {
        std::net::IpAddr::V4(address) => out.extend_from_slice(&address.octets()[..octets]),
        std::net::IpAddr::V6(address) => out.extend_from_slice(&address.octets()[..octets]),
    }
}

/// Each after its path identifier, where there are any.
pub(super) fn encode_all(prefixes: &[IpNetwork], path_ids: &[u32], out: &mut Vec<u8>) {
    for (index, prefix) in prefixes.iter().enumerate() {
        out.extend(path_ids.get(index).into_iter().flat_map(|id| id.to_be_bytes()));
        encode(prefix, out);
    }
}

/// The prefixes of a field, and the path identifier of each where the peer adds them; else there is none.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Nlri {
    pub prefixes: Vec<IpNetwork>,
    pub path_ids: Vec<u32>,
}

/// `None` where a prefix is longer than its family allows or than the field.
pub(super) fn decode_all(field: &[u8], family: Family, add_path: bool) -> Option<Nlri> {
    let mut reader = Reader::new(field);
    // A /24 takes four octets; what is shorter only makes the list grow.
    let mut nlri = Nlri { prefixes: Vec::with_capacity(field.len().div_ceil(4)), path_ids: Vec::new() };
    while !reader.is_empty() {
        if add_path {
            nlri.path_ids.push(reader.u32()?);
        }
        nlri.prefixes.push(decode(&mut reader, family)?);
    }
    Some(nlri)
}

fn decode(reader: &mut Reader<'_>, family: Family) -> Option<IpNetwork> {
    let length = reader.u8()?;
    let octets = reader.take(usize::from(length).div_ceil(8))?;
    // The value of trailing bits is irrelevant (RFC 4271 section 4.3): they are masked away.
    match family {
        Family::Ipv4Unicast => {
            let address = Ipv4Addr::from(padded::<4>(octets)?);
            let prefix = Ipv4Network::new(address, length).ok()?;
            Ipv4Network::new(prefix.network(), length).ok().map(IpNetwork::V4)
        }
        Family::Ipv6Unicast => {
            let address = Ipv6Addr::from(padded::<16>(octets)?);
            let prefix = Ipv6Network::new(address, length).ok()?;
            Ipv6Network::new(prefix.network(), length).ok().map(IpNetwork::V6)
        }
    }
}

fn padded<const N: usize>(octets: &[u8]) -> Option<[u8; N]> {
    let mut address = [0; N];
    address.get_mut(..octets.len())?.copy_from_slice(octets);
    Some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefixes(field: &[u8], family: Family) -> Option<Vec<IpNetwork>> {
        decode_all(field, family, false).map(|nlri| nlri.prefixes)
    }

    #[test]
    fn a_prefix_takes_only_the_octets_it_needs() {
        for (text, expected) in [
            ("0.0.0.0/0", vec![0]),
            ("10.0.0.0/8", vec![8, 10]),
            ("10.1.2.64/26", vec![26, 10, 1, 2, 64]),
            ("2001:db8::/32", vec![32, 0x20, 1, 0x0d, 0xb8]),
        ] {
            let prefix: IpNetwork = text.parse().unwrap();
            let mut out = Vec::new();
            encode(&prefix, &mut out);
            assert_eq!(out, expected);
            assert_eq!(encoded_len(&prefix), expected.len());
            assert_eq!(prefixes(&out, Family::of(&prefix)), Some(vec![prefix]));
        }
    }

    #[test]
    fn trailing_bits_are_masked() {
        let expected: IpNetwork = "10.16.0.0/12".parse().unwrap();
        assert_eq!(prefixes(&[12, 10, 0x1f], Family::Ipv4Unicast), Some(vec![expected]));
    }

    #[test]
    fn a_length_beyond_the_family_or_the_field_is_refused() {
        assert_eq!(prefixes(&[33, 1, 2, 3, 4, 5], Family::Ipv4Unicast), None);
        assert_eq!(prefixes(&[24, 1, 2], Family::Ipv4Unicast), None);
        assert_eq!(prefixes(&[255], Family::Ipv6Unicast), None);
        let mut too_long = vec![129];
        too_long.extend_from_slice(&[0; 17]);
        assert_eq!(prefixes(&too_long, Family::Ipv6Unicast), None);
    }

    #[test]
    fn path_identifiers_stand_before_their_prefixes() {
        let field = [0, 0, 0, 1, 8, 10, 0, 0, 1, 0, 8, 10];
        let ten: IpNetwork = "10.0.0.0/8".parse().unwrap();
        let expected = Nlri { prefixes: vec![ten, ten], path_ids: vec![1, 256] };
        let mut again = Vec::new();
        encode_all(&expected.prefixes, &expected.path_ids, &mut again);
        assert_eq!(again, field);
        assert_eq!(decode_all(&field, Family::Ipv4Unicast, true), Some(expected));
        assert_eq!(decode_all(&field[..9], Family::Ipv4Unicast, true), None);
    }
}
