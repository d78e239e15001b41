//! AS_PATH (RFC 4271 section 4.3 b), and its life between two-octet and four-octet speakers (RFC 6793).

use super::reader::Reader;

/// Stands for a four-octet AS number where only two octets fit.
pub const AS_TRANS: u16 = 23456;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SegmentKind {
    Set = 1,
    Sequence = 2,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Segment {
    pub kind: SegmentKind,
    pub asns: Vec<u32>,
}

impl Segment {
    fn hops(&self) -> usize {
        match self.kind {
            SegmentKind::Set => 1,
            SegmentKind::Sequence => self.asns.len(),
        }
    }
}

/// The nearest AS comes first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct AsPath(pub Vec<Segment>);

impl AsPath {
    pub fn sequence(asns: impl Into<Vec<u32>>) -> AsPath {
        let asns = asns.into();
        if asns.is_empty() {
            return AsPath::default();
        }
        AsPath(vec![Segment { kind: SegmentKind::Sequence, asns }])
    }

    /// Every AS number, those of sets among them.
    pub fn asns(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().flat_map(|segment| segment.asns.iter().copied())
    }

    /// The length that route selection compares.
    pub fn hops(&self) -> usize {
        self.0.iter().map(Segment::hops).sum()
    }

    pub(super) fn needs_four_octets(&self) -> bool {
        self.asns().any(|asn| asn > u32::from(u16::MAX))
    }

    pub(super) fn encode(&self, four_octets: bool) -> Vec<u8> {
        let mut out = Vec::new();
        for segment in &self.0 {
            for asns in segment.asns.chunks(usize::from(u8::MAX)) {
                out.extend_from_slice(&[segment.kind as u8, asns.len() as u8]);
                for asn in asns {
                    if four_octets {
                        out.extend_from_slice(&asn.to_be_bytes());
                    } else {
                        out.extend_from_slice(&u16::try_from(*asn).unwrap_or(AS_TRANS).to_be_bytes());
                    }
                }
            }
        }
        out
    }

    /// `None` where it is malformed (RFC 7606 section 7.2). Confederations are not spoken here, so that
    /// their segments are malformed too.
    pub(super) fn decode(value: &[u8], four_octets: bool) -> Option<AsPath> {
        let mut reader = Reader::new(value);
        let mut segments = Vec::new();
        while !reader.is_empty() {
            let kind = match reader.u8()? {
                1 => SegmentKind::Set,
                2 => SegmentKind::Sequence,
                _ => return None,
            };
            let count = reader.u8()?;
            if count == 0 {
                return None;
            }
            let mut asns = Vec::with_capacity(usize::from(count));
            for _ in 0..count {
                asns.push(if four_octets { reader.u32()? } else { u32::from(reader.u16()?) });
            }
            segments.push(Segment { kind, asns });
        }
        Some(AsPath(segments))
    }

    /// The true path, from the AS_PATH of a two-octet speaker and the AS4_PATH it handed on (RFC 6793
    /// section 4.2.3): what the old speakers put in front of it, and then AS4_PATH.
    pub(super) fn merged(self, as4: AsPath) -> AsPath {
        let Some(mut lead) = self.hops().checked_sub(as4.hops()) else {
            return self;
        };
        let mut segments = Vec::new();
        for mut segment in self.0 {
            if lead == 0 {
                break;
            }
            if segment.kind == SegmentKind::Sequence {
                segment.asns.truncate(lead);
            }
            lead -= segment.hops();
            segments.push(segment);
        }
        segments.extend(as4.0);
        AsPath(segments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_octets_carry_as_trans_for_a_long_number() {
        let path = AsPath::sequence([65001, 4_200_000_000]);
        assert_eq!(path.encode(false), [2, 2, 0xfd, 0xe9, 0x5b, 0xa0]);
        assert!(path.needs_four_octets());
        assert!(!AsPath::sequence([65001]).needs_four_octets());
    }

    #[test]
    fn as4_path_replaces_the_tail_of_the_two_octet_path() {
        let trans = u32::from(AS_TRANS);
        let seen = AsPath::sequence([65001, trans, trans]);
        let as4 = AsPath::sequence([70_001, 70_002]);
        let merged = seen.clone().merged(as4);
        assert_eq!(merged.asns().collect::<Vec<_>>(), [65001, 70_001, 70_002]);
        let longer = AsPath::sequence([1, 2, 3, 4]);
        assert_eq!(seen.clone().merged(longer), seen, "an AS4_PATH that is longer is not believed");
    }

    #[test]
    fn a_path_longer_than_a_segment_is_split() {
        let path = AsPath::sequence((1..=300).collect::<Vec<u32>>());
        let read = AsPath::decode(&path.encode(true), true).unwrap();
        assert_eq!(read.0.len(), 2);
        assert_eq!(read.hops(), 300);
        assert!(read.asns().eq(1..=300));
    }

    #[test]
    fn malformed_paths_are_refused() {
        for bytes in [&[2, 0][..], &[2, 2, 0, 0, 0, 1], &[2], &[3, 1, 0, 0, 0, 1], &[0, 1, 0, 0, 0, 1]] {
            assert_eq!(AsPath::decode(bytes, true), None, "{bytes:?}");
        }
    }
}
