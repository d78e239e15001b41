//! The control packet (RFC 5880 section 4.1), without authentication.

use std::fmt;
use std::num::NonZeroU32;

/// Octets of a packet without authentication.
pub const LENGTH: usize = 24;
const VERSION: u8 = 1;

const POLL: u8 = 0x20;
const FINAL: u8 = 0x10;
const CONTROL_PLANE_INDEPENDENT: u8 = 0x08;
const AUTHENTICATION: u8 = 0x04;
const DEMAND: u8 = 0x02;
const MULTIPOINT: u8 = 0x01;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "bfd", derive(serde::Serialize, serde::Deserialize))]
pub enum State {
    AdminDown,
    Down,
    Init,
    Up,
}

impl State {
    pub const ALL: [State; 4] = [State::AdminDown, State::Down, State::Init, State::Up];
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::AdminDown => "AdminDown",
            State::Down => "Down",
            State::Init => "Init",
            State::Up => "Up",
        })
    }
}

/// Why a session left Up last (RFC 5880 section 4.1); 5 bits, also those that no RFC has named yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "bfd", derive(serde::Serialize, serde::Deserialize))]
pub struct Diagnostic(pub u8);

impl Diagnostic {
    pub const NONE: Self = Self(0);
    pub const DETECTION_TIME_EXPIRED: Self = Self(1);
    pub const NEIGHBOR_SIGNALED_DOWN: Self = Self(3);
    pub const ADMINISTRATIVELY_DOWN: Self = Self(7);
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            0 => "no diagnostic",
            1 => "control detection time expired",
            2 => "echo function failed",
            3 => "neighbor signaled session down",
            4 => "forwarding plane reset",
            5 => "path down",
            6 => "concatenated path down",
            7 => "administratively down",
            8 => "reverse concatenated path down",
            other => return write!(f, "diagnostic {other}"),
        })
    }
}

/// Intervals are in microseconds, as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub diagnostic: Diagnostic,
    pub state: State,
    pub poll: bool,
    pub is_final: bool,
    /// BFD lives on when the control plane ends (C bit).
    pub control_plane_independent: bool,
    pub demand: bool,
    /// Never 0.
    pub detect_mult: u8,
    pub my_discriminator: NonZeroU32,
    /// 0 where the sender does not know us yet.
    pub your_discriminator: u32,
    pub desired_min_tx: u32,
    pub required_min_rx: u32,
    pub required_min_echo_rx: u32,
}

/// What makes a packet one to be discarded (RFC 5880 section 6.8.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("version {0}, not 1")]
    Version(u8),
    #[error("its length says {said} octets, {there} are there")]
    Length { said: u8, there: usize },
    #[error("a detection multiplier of 0")]
    Multiplier,
    #[error("the multipoint bit")]
    Multipoint,
    #[error("no discriminator of its own")]
    Discriminator,
    #[error("authentication, which is not configured")]
    Authentication,
    #[error("state {0} without our discriminator")]
    Stateful(State),
}

impl Packet {
    /// Everything of RFC 5880 section 6.8.6 that can be checked without knowing the session.
    ///
    /// # Errors
    /// What makes it one to be discarded.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let short = Malformed::Length { said: bytes.get(3).copied().unwrap_or(0), there: bytes.len() };
        let (&head, _) = bytes.split_first_chunk::<LENGTH>().ok_or(short)?;
        let [first, second, detect_mult, length, rest @ ..] = head;
        if first >> 5 != VERSION {
            return Err(Malformed::Version(first >> 5));
        }
        if usize::from(length) < LENGTH || usize::from(length) > bytes.len() {
            return Err(short);
        }
        if detect_mult == 0 {
            return Err(Malformed::Multiplier);
        }
        if second & MULTIPOINT != 0 {
            return Err(Malformed::Multipoint);
        }
        if second & AUTHENTICATION != 0 {
            return Err(Malformed::Authentication);
        }
        let word = |i: usize| u32::from_be_bytes([rest[i], rest[i + 1], rest[i + 2], rest[i + 3]]);
        let state = State::ALL[usize::from(second >> 6)];
        let your_discriminator = word(4);
        if your_discriminator == 0 && state > State::Down {
            return Err(Malformed::Stateful(state));
        }
        Ok(Self {
            diagnostic: Diagnostic(first & 0x1f),
            state,
            poll: second & POLL != 0,
            is_final: second & FINAL != 0,
            control_plane_independent: second & CONTROL_PLANE_INDEPENDENT != 0,
            demand: second & DEMAND != 0,
            detect_mult,
            my_discriminator: NonZeroU32::new(word(0)).ok_or(Malformed::Discriminator)?,
            your_discriminator,
            desired_min_tx: word(8),
            required_min_rx: word(12),
            required_min_echo_rx: word(16),
        })
    }

    pub fn encode(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[0] = VERSION << 5 | self.diagnostic.0 & 0x1f;
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        bytes[1] = (self.state as u8) << 6
            | bit(self.poll, POLL)
            | bit(self.is_final, FINAL)
            | bit(self.control_plane_independent, CONTROL_PLANE_INDEPENDENT)
            | bit(self.demand, DEMAND);
        bytes[2] = self.detect_mult;
        bytes[3] = LENGTH as u8;
        let words = [
            self.my_discriminator.get(),
            self.your_discriminator,
            self.desired_min_tx,
            self.required_min_rx,
            self.required_min_echo_rx,
        ];
        for (place, word) in bytes[4..].chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet() -> impl Strategy<Value = Packet> {
        let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
        let numbers = (1..=u8::MAX, 1..=u32::MAX, 1..=u32::MAX, any::<u32>(), any::<u32>(), any::<u32>());
        (0..32u8, 0..4usize, flags, numbers).prop_map(|(diagnostic, state, flags, numbers)| Packet {
            diagnostic: Diagnostic(diagnostic),
            state: State::ALL[state],
            poll: flags.0,
            is_final: flags.1,
            control_plane_independent: flags.2,
            demand: flags.3,
            detect_mult: numbers.0,
            my_discriminator: NonZeroU32::new(numbers.1).unwrap(),
            your_discriminator: numbers.2,
            desired_min_tx: numbers.3,
            required_min_rx: numbers.4,
            required_min_echo_rx: numbers.5,
        })
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(packet in packet()) {
            prop_assert_eq!(Packet::decode(&packet.encode()), Ok(packet));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Packet::decode(&bytes);
        }

        #[test]
        fn octets_after_the_length_do_not_matter(packet in packet(), rest in prop::collection::vec(any::<u8>(), 0..9)) {
            let bytes = [packet.encode().as_slice(), &rest].concat();
            prop_assert_eq!(Packet::decode(&bytes), Ok(packet));
        }
    }

    fn good() -> [u8; LENGTH] {
        // Version 1, Down; multiplier 3; discriminators 1 and 0; 1 s, 300 ms, no echo.
        let mut bytes = [0; LENGTH];
        bytes[..8].copy_from_slice(&[0x20, 0x40, 3, 24, 0, 0, 0, 1]);
        bytes[12..20].copy_from_slice(&[0x00, 0x0f, 0x42, 0x40, 0x00, 0x04, 0x93, 0xe0]);
        bytes
    }

    #[test]
    fn a_packet_reads_as_section_4_1_draws_it() {
        let packet = Packet::decode(&good()).unwrap();
        assert_eq!((packet.state, packet.detect_mult), (State::Down, 3));
        assert_eq!((packet.desired_min_tx, packet.required_min_rx), (1_000_000, 300_000));
    }

    #[test]
    fn what_section_6_8_6_discards_is_refused_and_named() {
        let with = |i: usize, value: u8| {
            let mut bytes = good();
            bytes[i] = value;
            Packet::decode(&bytes).unwrap_err()
        };
        assert_eq!(with(0, 0x40), Malformed::Version(2));
        assert_eq!(with(3, 23), Malformed::Length { said: 23, there: 24 });
        assert_eq!(with(3, 25), Malformed::Length { said: 25, there: 24 });
        assert_eq!(with(2, 0), Malformed::Multiplier);
        assert_eq!(with(1, 0x41), Malformed::Multipoint);
        assert_eq!(with(1, 0x44), Malformed::Authentication);
        assert_eq!(with(7, 0), Malformed::Discriminator);
        assert_eq!(with(1, 0x80), Malformed::Stateful(State::Init));
        assert_eq!(with(1, 0xc0), Malformed::Stateful(State::Up));
        assert_eq!(Packet::decode(&good()[..23]), Err(Malformed::Length { said: 24, there: 23 }));
        assert_eq!(Packet::decode(&[]), Err(Malformed::Length { said: 0, there: 0 }));
    }
}
