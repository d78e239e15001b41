//! Prefixes as intervals without overlap, as the kernel's sets want them. Pure.

use ipnetwork::IpNetwork;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// First and last address of each, in order; what touches is one.
pub fn merged(prefixes: impl IntoIterator<Item = IpNetwork>, v6: bool) -> Vec<(IpAddr, IpAddr)> {
    let of_family = prefixes.into_iter().filter(|p| p.is_ipv6() == v6);
    let mut all: Vec<_> = of_family.map(|p| (number(p.network()), number(p.broadcast()))).collect();
    all.sort_unstable();
    let mut apart: Vec<(u128, u128)> = Vec::new();
    for (first, last) in all {
        match apart.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => apart.push((first, last)),
        }
    }
    apart.into_iter().map(|(first, last)| (address(first, v6), address(last, v6))).collect()
}

/// The one behind it, if there is one.
pub fn next(of: IpAddr) -> Option<IpAddr> {
    match of {
        IpAddr::V4(a) => Some(Ipv4Addr::from(u32::from(a).checked_add(1)?).into()),
        IpAddr::V6(a) => Some(Ipv6Addr::from(u128::from(a).checked_add(1)?).into()),
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u32::from(a).into(),
        IpAddr::V6(a) => a.into(),
    }
}

fn address(number: u128, v6: bool) -> IpAddr {
    match u32::try_from(number) {
        Ok(number) if !v6 => Ipv4Addr::from(number).into(),
        _ => Ipv6Addr::from(number).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_neither_overlap_nor_touch() {
        let of = |texts: &[&str], v6| -> Vec<String> {
            let all = texts.iter().map(|t| t.parse().unwrap());
            merged(all, v6).iter().map(|(first, last)| format!("{first}-{last}")).collect()
        };
        let texts = ["10.1.0.0/16", "10.0.0.0/16", "10.1.2.0/24", "10.3.0.1/32", "fd00::/64", "255.0.0.0/8"];
        assert_eq!(
            of(&texts, false),
            ["10.0.0.0-10.1.255.255", "10.3.0.1-10.3.0.1", "255.0.0.0-255.255.255.255"]
        );
        assert_eq!(of(&texts, true), ["fd00::-fd00::ffff:ffff:ffff:ffff"]);
        assert_eq!(of(&["::/0", "ff00::/8"], true), ["::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]);
    }

    #[test]
    fn behind_the_last_address_there_is_none() {
        for (of, behind) in
            [("10.0.0.255", Some("10.0.1.0")), ("255.255.255.255", None), ("fd00::ffff", Some("fd00::1:0"))]
        {
            assert_eq!(next(of.parse().unwrap()), behind.map(|b| b.parse().unwrap()));
        }
    }
}
