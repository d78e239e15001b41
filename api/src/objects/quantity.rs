//! Amounts as Kubernetes writes them: a whole number with an optional suffix.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{borrow::Cow, fmt, str::FromStr};

/// `500M`, `1G`, `64Ki`: decimal suffixes k M G T, binary ones Ki Mi Gi Ti.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity(pub u64);

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn inline_schema() -> bool {
        true
    }

    /// Every quantity of these kinds is an amount of something; there is none of nothing.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A whole number with an optional suffix: k, M, G, T, Ki, Mi, Gi or Ti.",
            "x-kubernetes-int-or-string": true,
            "pattern": "^[0-9]+(k|M|G|T|Ki|Mi|Gi|Ti)?$",
            "maxLength": 20,
            "x-kubernetes-validations": [{
                "rule": "type(self) == int ? self > 0 : self.matches('[1-9]')",
                "message": "0 lets nothing pass: write an amount, as `500M`, or leave it out",
            }],
        })
    }
}

const SUFFIXES: [(&str, u64); 8] = [
    ("Ti", 1 << 40),
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("Ki", 1 << 10),
    ("T", 1_000_000_000_000),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("k", 1_000),
];

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an amount: write a whole number with an optional suffix k, M, G, T, Ki, Mi, Gi or Ti")]
pub struct QuantityError(String);

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let error = || QuantityError(s.to_string());
        let (digits, factor) = SUFFIXES
            .iter()
            .find_map(|(suffix, factor)| s.strip_suffix(suffix).map(|d| (d, *factor)))
            .unwrap_or((s, 1));
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(error());
        }
        let number: u64 = digits.parse().map_err(|_| error())?;
        number.checked_mul(factor).map(Self).ok_or_else(error)
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, factor): &&(&str, u64)| self.0 >= *factor && self.0.is_multiple_of(*factor);
        match SUFFIXES.iter().rev().take(4).rev().find(fits) {
            Some((suffix, factor)) => write!(f, "{}{suffix}", self.0 / factor),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(u64),
            Text(String),
        }
        match Form::deserialize(d)? {
            Form::Number(n) => Ok(Self(n)),
            Form::Text(t) => t.parse().map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_decimal_or_binary_and_round_trip() {
        for (text, value) in [("500M", 500_000_000), ("1G", 1_000_000_000), ("64Ki", 65_536), ("7", 7)] {
            assert_eq!(text.parse(), Ok(Quantity(value)));
        }
        assert_eq!(Quantity(500_000_000).to_string(), "500M");
        assert_eq!(Quantity(1_000_000_000).to_string(), "1G");
    }

    #[test]
    fn what_is_not_an_amount_is_refused() {
        for text in ["", "G", "1.5G", "-1", "1g", "99999999999T"] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
    }
}
