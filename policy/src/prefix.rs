//! Prefixes in the one address space of the kernel's maps: IPv4 stands at `::ffff:0:0/96`.

use bulkhead_ebpf_abi::{Addr, V4_PREFIX_OFFSET};
use ipnetwork::IpNetwork;

/// Ordered so that a prefix stands before all that it holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct Prefix {
    pub address: Addr,
    pub length: u8,
}

impl Prefix {
    /// All of IPv4.
    pub const V4: Self = Self { address: Addr::v4([0; 4]), length: V4_PREFIX_OFFSET as u8 };

    /// The network meant: bits beyond the prefix are dropped.
    pub fn of(network: IpNetwork) -> Self {
        let length = match network {
            IpNetwork::V4(v4) => v4.prefix() + V4_PREFIX_OFFSET as u8,
            IpNetwork::V6(v6) => v6.prefix(),
        };
        Self::of_address(Addr::from_ip(network.ip()), length)
    }

    /// The prefix of this length that holds the address.
    pub fn of_address(address: Addr, length: u8) -> Self {
        let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
        Self { address: Addr((u128::from_be_bytes(address.0) & mask).to_be_bytes()), length }
    }

    /// IPv6 prefixes hold no IPv4 address, though all of IPv4 lies inside `::/0` as the maps see it.
    pub fn contains(self, address: Addr) -> bool {
        self.covers(Self { address, length: 128 })
    }

    /// Whether all of `inner` lies in here, by the families' own reckoning.
    pub fn covers(self, inner: Self) -> bool {
        self.spans(inner) && (self.is_v4() || !inner.is_v4())
    }

    /// As [`Self::covers`], in the maps' single space.
    pub fn spans(self, inner: Self) -> bool {
        self.length <= inner.length && Self::of_address(inner.address, self.length).address == self.address
    }

    fn is_v4(self) -> bool {
        Self::V4.spans(self)
    }

    /// The network as people write it.
    pub fn network(self) -> IpNetwork {
        let (ip, length) = if self.is_v4() {
            (self.address.to_ip(), self.length - V4_PREFIX_OFFSET as u8)
        } else {
            (std::net::Ipv6Addr::from(self.address.0).into(), self.length)
        };
        IpNetwork::new(ip, length).unwrap_or_else(|_| ip.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        Prefix::of(text.parse().unwrap())
    }

    #[test]
    fn a_prefix_holds_what_is_inside_it_and_nothing_of_the_other_family() {
        assert!(prefix("10.0.0.0/8").covers(prefix("10.1.0.0/16")));
        assert!(!prefix("10.1.0.0/16").covers(prefix("10.0.0.0/8")));
        assert!(prefix("::/0").covers(prefix("fd00::/8")));
        assert!(!prefix("::/0").covers(prefix("10.0.0.0/8")));
        assert!(!prefix("0.0.0.0/0").covers(prefix("fd00::/8")));
        assert!(prefix("0.0.0.0/0").contains(Addr::v4([1, 2, 3, 4])));
    }

    #[test]
    fn a_prefix_is_written_as_it_was_read() {
        for text in ["10.0.0.0/8", "0.0.0.0/0", "10.1.2.3/32", "::/0", "fd00:65::/64", "fd00::1/128"] {
            assert_eq!(prefix(text).network().to_string(), text);
        }
        assert_eq!(prefix("10.1.2.3/8").network().to_string(), "10.0.0.0/8");
        assert_eq!(prefix("::ffff:10.0.0.0/104"), prefix("10.0.0.0/8"));
    }
}
