//! A cursor over received bytes that never reads past their end.

/// Every take answers `None` where the bytes do not suffice, and then takes nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*taken)
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// The field that a one-octet length precedes.
    pub fn counted8(&mut self) -> Option<Reader<'a>> {
        let mut ahead = *self;
        let count = ahead.u8()?;
        let field = ahead.take(usize::from(count))?;
        *self = ahead;
        Some(Reader::new(field))
    }

    /// The field that a two-octet length precedes.
    pub fn counted16(&mut self) -> Option<Reader<'a>> {
        let mut ahead = *self;
        let count = ahead.u16()?;
        let field = ahead.take(usize::from(count))?;
        *self = ahead;
        Some(Reader::new(field))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_that_lies_takes_nothing() {
        let mut reader = Reader::new(&[5, 1, 2]);
        assert!(reader.counted8().is_none());
        assert_eq!(reader.rest(), [5, 1, 2]);
        assert!(reader.counted16().is_none());
        assert_eq!(reader.u8(), Some(5));
        assert_eq!(reader.u32(), None);
        assert_eq!(reader.u16(), Some(0x0102));
        assert!(reader.is_empty());
    }
}
