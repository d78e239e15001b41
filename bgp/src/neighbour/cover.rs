//! Whether a prefix lies within one of a set: a look-up for each prefix length that occurs in the set, of which there are few.

use ipnetwork::IpNetwork;
use std::collections::{BTreeSet, HashSet};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cover {
    networks: HashSet<IpNetwork>,
    ipv4_lengths: BTreeSet<u8>,
    ipv6_lengths: BTreeSet<u8>,
}

impl Cover {
    pub fn new(prefixes: impl IntoIterator<Item = IpNetwork>) -> Cover {
        let mut cover = Cover::default();
        for prefix in prefixes {
            let lengths = if prefix.is_ipv4() { &mut cover.ipv4_lengths } else { &mut cover.ipv6_lengths };
            lengths.insert(prefix.prefix());
            cover.networks.extend(at_length(&prefix, prefix.prefix()));
        }
        cover
    }

    pub fn holds(&self, prefix: &IpNetwork) -> bool {
        let lengths = if prefix.is_ipv4() { &self.ipv4_lengths } else { &self.ipv6_lengths };
        let mut around = lengths.range(..=prefix.prefix()).filter_map(|length| at_length(prefix, *length));
        around.any(|network| self.networks.contains(&network))
    }

    /// What is in one of the two only.
    pub fn difference(&self, other: &Cover) -> Cover {
        Cover::new(self.networks.symmetric_difference(&other.networks).copied())
    }

    pub fn is_empty(&self) -> bool {
        self.networks.is_empty()
    }
}

/// The network of that length around the address of `prefix`.
fn at_length(prefix: &IpNetwork, length: u8) -> Option<IpNetwork> {
    let around = IpNetwork::new(prefix.ip(), length).ok()?;
    IpNetwork::new(around.network(), length).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn network() -> impl Strategy<Value = IpNetwork> {
        let ipv4 = (any::<[u8; 4]>(), 0..=32u8).prop_map(|(a, length)| {
            // Few addresses, so that some lie within others.
            IpNetwork::new([a[0] & 1, a[1] & 3, 0, a[3]].into(), length).unwrap()
        });
        let ipv6 = (any::<[u8; 2]>(), 0..=128u8).prop_map(|([a, b], length)| {
            let mut octets = [0; 16];
            (octets[0], octets[15]) = (a & 1, b);
            IpNetwork::new(octets.into(), length).unwrap()
        });
        prop_oneof![ipv4, ipv6]
    }

    proptest! {
        #[test]
        fn it_answers_as_looking_at_each_of_them_does(
            own in proptest::collection::vec(network(), 0..20), asked in network()
        ) {
            let slow = own.iter().any(|own| own.prefix() <= asked.prefix() && own.contains(asked.ip()));
            prop_assert_eq!(Cover::new(own).holds(&asked), slow);
        }
    }
}
