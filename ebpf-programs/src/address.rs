//! An address in two words, as it lies in the packet: compared, hashed and copied without touching single bytes.

use bulkhead_ebpf_abi::Addr;

/// The bytes of an [`Addr`], aligned.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Address(pub [u64; 2]);

/// `::ffff:0:0/96`, the second word without its IPv4 half.
const MAPPED: u64 = u64::from_ne_bytes([0, 0, 0xff, 0xff, 0, 0, 0, 0]);
const MAPPED_MASK: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);

impl Address {
    pub const ZERO: Self = Self([0, 0]);

    /// `raw` as it lies in the packet.
    #[inline(always)]
    pub fn v4(raw: u32) -> Self {
        Self([0, MAPPED | (u64::from(raw) << 32)])
    }

    /// Of an address within a map's value.
    #[inline(always)]
    pub fn of_value(addr: &Addr) -> Self {
        let words = (&raw const addr.0).cast::<u64>();
        // SAFETY: values of maps are aligned to 8 bytes, and every address in one stands at a multiple of 8.
        unsafe { Self([words.read(), words.add(1).read()]) }
    }

    #[inline(always)]
    pub fn as_addr(&self) -> &Addr {
        // SAFETY: `Addr` is 16 bytes without alignment; so are two words.
        unsafe { &*(&raw const self.0).cast::<Addr>() }
    }

    /// As they lie in the packet; the last is an IPv4 address.
    #[inline(always)]
    pub fn words(&self) -> [u32; 4] {
        let [high, low] = self.0;
        [high as u32, (high >> 32) as u32, low as u32, (low >> 32) as u32]
    }

    /// An IPv6 header must not carry one: it would be taken for the IPv4 address.
    #[inline(always)]
    pub fn is_mapped(&self) -> bool {
        self.0[0] == 0 && self.0[1] & MAPPED_MASK == MAPPED
    }

    /// `::` or `0.0.0.0`.
    #[inline(always)]
    pub fn is_unspecified(&self) -> bool {
        self.0[0] == 0 && (self.0[1] == 0 || self.0[1] == MAPPED)
    }

    /// Order of the bytes.
    #[inline(always)]
    pub fn is_above(&self, other: &Self) -> bool {
        let (a, b) = (u64::from_be(self.0[0]), u64::from_be(other.0[0]));
        a > b || (a == b && u64::from_be(self.0[1]) > u64::from_be(other.0[1]))
    }

    #[inline(always)]
    fn v4_octets(&self) -> u32 {
        u64::from_be(self.0[1]) as u32
    }

    /// Multicast, or IPv4 limited broadcast.
    #[inline(always)]
    pub fn is_multicast(&self) -> bool {
        if self.is_mapped() {
            let v4 = self.v4_octets();
            v4 >> 28 == 0xe || v4 == u32::MAX
        } else {
            u64::from_be(self.0[0]) >> 56 == 0xff
        }
    }

    /// `fe80::/10`.
    #[inline(always)]
    pub fn is_link_local(&self) -> bool {
        u64::from_be(self.0[0]) >> 54 == 0xfe80 >> 6
    }

    /// `ff02::/16`.
    #[inline(always)]
    pub fn is_link_local_multicast(&self) -> bool {
        u64::from_be(self.0[0]) >> 48 == 0xff02
    }
}
