//! Kubernetes quantities (`100m`, `250Mi`, `1`), as far as resource requests and limits need them.
//!
//! The text is kept as written, so that the sidecar's spec reads as its author wrote it; the value serves for
//! comparison and for rounding CPU up to whole cores.

use std::{cmp::Ordering, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A quantity that is zero or more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantity {
    text: String,
    /// In thousandths, rounded up: Kubernetes' own smallest step for CPU.
    milli: u128,
}

/// Why a text is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a quantity: expected a number of zero or more with an optional unit, such as 100m, 0.5, 250Mi or 1Gi"
)]
pub struct QuantityError(pub String);

impl Quantity {
    /// The text as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The value rounded up to a whole number: for CPU, the number of cores that it keeps busy.
    pub fn whole(&self) -> u64 {
        u64::try_from(self.milli.div_ceil(1000)).unwrap_or(u64::MAX)
    }
}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.milli.partial_cmp(&other.milli)
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let error = || QuantityError(s.to_owned());
        let text = s.trim();
        let digits = text
            .bytes()
            .take_while(|b| b.is_ascii_digit() || *b == b'.')
            .count();
        let (number, unit) = text.split_at(digits);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        // Bounds keep the arithmetic below within u128: Kubernetes itself stops at 2^63.
        if whole.is_empty() && fraction.is_empty()
            || whole.len() > 19
            || fraction.len() > 9
            || fraction.contains('.')
        {
            return Err(error());
        }
        let nano_digits = format!("{whole}{fraction:0<9}");
        let nano: u128 = nano_digits.parse().map_err(|_| error())?;
        // The unit's factor as numerator and denominator.
        let (times, per): (u128, u128) = match unit {
            "" => (1, 1),
            "n" => (1, 1_000_000_000),
            "u" => (1, 1_000_000),
            "m" => (1, 1_000),
            "k" => (1_000, 1),
            "M" => (1_000_000, 1),
            "G" => (1_000_000_000, 1),
            "T" => (1_000_000_000_000, 1),
            "P" => (1_000_000_000_000_000, 1),
            "Ki" => (1 << 10, 1),
            "Mi" => (1 << 20, 1),
            "Gi" => (1 << 30, 1),
            "Ti" => (1 << 40, 1),
            "Pi" => (1 << 50, 1),
            _ => exponent(unit).ok_or_else(error)?,
        };
        let scaled = nano.checked_mul(times).ok_or_else(error)?;
        Ok(Self {
            text: text.to_owned(),
            milli: scaled.div_ceil(1_000_000 * per),
        })
    }
}

/// `e3`, `E-3`: a power of ten, at most 15 either way.
fn exponent(unit: &str) -> Option<(u128, u128)> {
    let power: i32 = unit.strip_prefix(['e', 'E'])?.parse().ok()?;
    let factor = 10u128
        .checked_pow(power.unsigned_abs())
        .filter(|_| power.abs() <= 15)?;
    Some(if power < 0 { (1, factor) } else { (factor, 1) })
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    /// Reads text, and numbers too: YAML turns `cpu: 1` into one.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Text(String),
            Whole(u64),
            Fraction(f64),
        }
        let text = match Form::deserialize(deserializer)? {
            Form::Text(text) => text,
            Form::Whole(number) => number.to_string(),
            Form::Fraction(number) => number.to_string(),
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_cpu_up_to_cores_and_compares_across_units() {
        let q = |text: &str| text.parse::<Quantity>().expect("a quantity");
        for (text, cores) in [
            ("100m", 1),
            ("1", 1),
            ("1001m", 2),
            ("1.5", 2),
            ("0", 0),
            ("2e0", 2),
            (".5", 1),
            ("4", 4),
        ] {
            assert_eq!(q(text).whole(), cores, "{text}");
        }
        assert!(
            q("250Mi") > q("250M")
                && q("1Gi") == q("1Gi")
                && q("1024Mi").partial_cmp(&q("1Gi")) == Some(Ordering::Equal)
        );
        assert!(q("1n") > q("0"), "a quantity above zero must not vanish");
    }

    #[test]
    fn refuses_what_is_no_quantity() {
        for bad in [
            "",
            "-1",
            "1.2.3",
            "abc",
            "1 Gi",
            "1mi",
            "e3",
            ".",
            "1e99",
            "1Xi",
            "99999999999999999999",
            "1.0000000001",
        ] {
            assert!(bad.parse::<Quantity>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn fuzz_quantities() {
        bolero::check!().with_type::<String>().for_each(|text| {
            if let Ok(quantity) = text.parse::<Quantity>() {
                assert_eq!(
                    quantity.as_str().parse::<Quantity>().map(|one| one.whole()),
                    Ok(quantity.whole())
                );
            }
        });
    }
}
