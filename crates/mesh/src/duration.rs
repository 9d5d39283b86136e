//! Durations as Linkerd writes them: an integer and one unit, `ms`, `s`, `m`, `h` or `d`.
//!
//! `1.5s` and `1m30s` are refused, as Linkerd refuses them; a bare `0` is accepted.

use std::time::Duration;

/// Why a text is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a duration: expected a whole number and one unit (ms, s, m, h or d), such as 300ms or 24h"
)]
pub struct DurationError(pub String);

/// Parses a duration.
///
/// # Errors
/// Anything but a whole number followed by one unit, or more than `u64` milliseconds.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let error = || DurationError(text.to_owned());
    let trimmed = text.trim();
    let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = trimmed.split_at(digits);
    let number: u64 = number.parse().map_err(|_| error())?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "" if number == 0 => 1,
        _ => return Err(error()),
    };
    number
        .checked_mul(unit_ms)
        .map(Duration::from_millis)
        .ok_or_else(error)
}

/// Prints a duration with the largest unit that keeps it whole; parts below a millisecond are dropped.
pub fn format(duration: Duration) -> String {
    let ms = duration.as_millis();
    let units = [
        (86_400_000, "d"),
        (3_600_000, "h"),
        (60_000, "m"),
        (1_000, "s"),
        (1, "ms"),
    ];
    let whole = units
        .into_iter()
        .find(|(size, _)| ms > 0 && ms.is_multiple_of(*size));
    let (number, unit) = whole.map_or((0, "s"), |(size, unit)| (ms / size, unit));
    format!("{number}{unit}")
}

/// For serde's `with`: a duration as Linkerd's text.
pub mod text {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    /// Writes the text form.
    ///
    /// # Errors
    /// Only the serializer's own.
    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::format(*duration))
    }

    /// Reads the text form.
    ///
    /// # Errors
    /// [`super::DurationError`], as the deserializer's error.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        super::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_prints_linkerds_form() {
        for (text, ms) in [
            ("300ms", 300),
            ("1s", 1_000),
            ("5m", 300_000),
            ("24h", 86_400_000),
            ("7d", 604_800_000),
            ("0", 0),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(format(Duration::from_secs(86_400)), "1d");
        assert_eq!(format(Duration::from_millis(1_500)), "1500ms");
    }

    #[test]
    fn refuses_go_style_and_nonsense() {
        for bad in [
            "",
            "5",
            "1.5s",
            "1m30s",
            "-1s",
            "s",
            "1 s",
            "1us",
            "99999999999999999999s",
            "18446744073709551615d",
        ] {
            assert!(parse(bad).is_err(), "{bad:?} was taken");
        }
    }
}
