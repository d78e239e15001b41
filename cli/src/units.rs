//! Amounts as people read them.

/// Bits a second, as bandwidth is sold: `500 Mbit/s`, `1 Gbit/s`, `2.5 Gbit/s`.
pub fn rate(bits: u64) -> String {
    scaled(bits, "bit/s")
}

/// `1.5 MB`: decimal, as interfaces count.
pub fn bytes(bytes: u64) -> String {
    scaled(bytes, "B")
}

/// Two digits after the point at most.
fn scaled(amount: u64, unit: &str) -> String {
    const PREFIXES: [(u64, &str); 4] =
        [(1_000_000_000_000, "T"), (1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")];
    let Some((factor, prefix)) = PREFIXES.into_iter().find(|(factor, _)| amount >= *factor) else {
        return format!("{amount} {unit}");
    };
    let hundredths = u128::from(amount) * 100 / u128::from(factor);
    let (whole, rest) = (hundredths / 100, hundredths % 100);
    let number = format!("{whole}.{rest:02}");
    format!("{} {prefix}{unit}", number.trim_end_matches('0').trim_end_matches('.'))
}

/// Seconds, in its two largest units: `42 s`, `3 min 20 s`, `2 h 5 min`, `4 d 1 h`.
pub fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    let pair = |a: u64, a_unit: &str, b: u64, b_unit: &str| match b {
        0 => format!("{a} {a_unit}"),
        b => format!("{a} {a_unit} {b} {b_unit}"),
    };
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, m) => pair(m, "min", seconds % 60, "s"),
        (0, h, m) => pair(h, "h", m, "min"),
        (d, h, _) => pair(d, "d", h, "h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_shown_as_they_are_sold() {
        let shown = [0, 999, 64_000, 500_000_000, 1_000_000_000, 2_500_000_000, 1_234_567_890, u64::MAX];
        assert_eq!(
            shown.map(rate),
            [
                "0 bit/s",
                "999 bit/s",
                "64 kbit/s",
                "500 Mbit/s",
                "1 Gbit/s",
                "2.5 Gbit/s",
                "1.23 Gbit/s",
                "18446744.07 Tbit/s"
            ]
        );
        assert_eq!([10, 1_500].map(bytes), ["10 B", "1.5 kB"]);
    }

    #[test]
    fn durations_have_two_units_at_most() {
        assert_eq!(
            [0, 59, 60, 200, 3_600, 7_500, 86_400, 349_300].map(duration),
            ["0 s", "59 s", "1 min", "3 min 20 s", "1 h", "2 h 5 min", "1 d", "4 d 1 h"]
        );
    }
}
