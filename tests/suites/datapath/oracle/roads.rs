//! Who is reached past the stack: ranges of whose addresses nothing is translated, and such as are translated within them.

use super::{objects, random::Random};
use bulkhead_ebpf_abi::Addr;
use ipnetwork::IpNetwork;

#[derive(Debug, Default)]
pub struct Ranges {
    pub direct: Vec<IpNetwork>,
    pub translated: Vec<IpNetwork>,
}

impl Ranges {
    /// Of the space in which [`objects::address`] lies, most.
    pub fn new(random: &mut Random) -> Self {
        let all =
            ["8.0.0.0/7", "10.0.0.0/8", "11.0.0.0/8", "12.0.0.0/7", "fd00::/16", "fd01::/16", "fd02::/16"];
        let direct = all.map(|range| range.parse().expect("a range"));
        Self {
            direct: direct.into_iter().filter(|_| random.percent(75)).collect(),
            translated: (0..random.below(3)).map(|_| objects::network(random)).collect(),
        }
    }

    /// The longest range decides; of one that stands in both it is translated.
    pub fn contains(&self, address: Addr) -> bool {
        let address = address.to_ip();
        let longest = |ranges: &[IpNetwork]| {
            ranges.iter().filter(|range| range.contains(address)).map(IpNetwork::prefix).max()
        };
        longest(&self.direct) > longest(&self.translated)
    }
}
