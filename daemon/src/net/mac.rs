//! Names and hardware addresses that follow from who a pod's interface belongs to: the same in every attempt, no two alike.

use super::{HOST_PREFIX, IFB_PREFIX};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, str::FromStr};

/// An Ethernet address; `aa:bb:cc:dd:ee:ff`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an Ethernet address")]
pub struct MacError(String);

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let error = || MacError(s.to_string());
        let mut bytes = [0; 6];
        let mut parts = s.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(error)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() { Err(error()) } else { Ok(Self(bytes)) }
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What an attachment's interfaces are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    pub host: String,
    pub ifb: String,
    pub host_mac: Mac,
    pub pod_mac: Mac,
}

impl Names {
    /// `key` names the attachment (the stem of its record's file).
    pub fn of(key: &str) -> Self {
        let tail = hash(key, "name") >> 24;
        Self {
            host: format!("{HOST_PREFIX}{tail:010x}"),
            ifb: format!("{IFB_PREFIX}{tail:010x}"),
            host_mac: local_mac(hash(key, "host")),
            pod_mac: local_mac(hash(key, "pod")),
        }
    }
}

/// A locally administered unicast address.
fn local_mac(hash: u64) -> Mac {
    let [first, rest @ .., _, _] = hash.to_be_bytes();
    let [b, c, d, e, f] = rest;
    Mac([(first & 0xfc) | 0x02, b, c, d, e, f])
}

/// FNV-1a with a finishing mix: these values outlive the process, so they must not depend on a library's version.
fn hash(key: &str, salt: &str) -> u64 {
    let bytes = key.bytes().chain([0]).chain(salt.bytes());
    let h = bytes.fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let h = (h ^ (h >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^ (h >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_fit_the_kernel_and_never_change() {
        let names = Names::of("0123456789abcdef-eth0");
        assert_eq!(names.host.len(), 12);
        assert_eq!(names.host[2..], names.ifb[2..]);
        assert_eq!(names, Names::of("0123456789abcdef-eth0"));
        // The values on disk and in kernels of running nodes.
        assert_eq!((names.host.as_str(), names.host_mac.to_string().as_str()), GOLDEN);
    }

    const GOLDEN: (&str, &str) = ("bha197519a96", "52:3e:4f:9a:63:40");

    #[test]
    fn hardware_addresses_are_local_unicast_and_differ() {
        let mut seen = BTreeSet::new();
        for i in 0..1000 {
            let names = Names::of(&format!("container{i}-eth0"));
            for mac in [names.host_mac, names.pod_mac] {
                assert_eq!(mac.0[0] & 3, 2, "{mac}");
                assert!(seen.insert(mac), "{mac} twice");
            }
            assert_eq!(mac_round_trip(names.pod_mac), Ok(names.pod_mac));
        }
    }

    fn mac_round_trip(mac: Mac) -> Result<Mac, MacError> {
        mac.to_string().parse()
    }

    #[test]
    fn what_is_no_hardware_address_is_refused() {
        for text in ["", "02:00:00:00:00", "02:00:00:00:00:00:00", "02:00:00:00:00:0", "02:00:00:00:00:0g"] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }
}
