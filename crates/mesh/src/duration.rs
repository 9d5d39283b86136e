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

/// Why a text is no duration as Go writes them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GoDurationError {
    /// It is a duration, but a negative one.
    #[error("`{0}` is a negative duration")]
    Negative(String),
    /// It is none.
    #[error(
        "`{0}` is not a duration: expected numbers with units (ns, us, ms, s, m, h), such as 300ms or 1m30s"
    )]
    Syntax(String),
}

/// Parses a duration as Go writes them, which is how ServiceProfiles have theirs: `300ms`, `1.5s`, `1m30s`. Parts below a
/// nanosecond are dropped.
///
/// # Errors
/// Anything else, a negative duration, or one that Go could not hold (292 years).
pub fn parse_go(text: &str) -> Result<Duration, GoDurationError> {
    const MAX_NANOS: u128 = i64::MAX as u128;
    let error = || GoDurationError::Syntax(text.to_owned());
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest.is_empty() {
        return Err(error());
    }
    let mut total: u128 = 0;
    if rest != "0" {
        while !rest.is_empty() {
            let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
            let (whole, after) = rest.split_at(digits(rest));
            let (fraction, after) = match after.strip_prefix('.') {
                Some(after) => after.split_at(digits(after)),
                None => ("", after),
            };
            let end = after
                .find(|c: char| c.is_ascii_digit() || c == '.')
                .unwrap_or(after.len());
            let (unit, after) = after.split_at(end);
            let nanos: u128 = match unit {
                "ns" => 1,
                "us" | "µs" | "μs" => 1_000,
                "ms" => 1_000_000,
                "s" => 1_000_000_000,
                "m" => 60_000_000_000,
                "h" => 3_600_000_000_000,
                _ => return Err(error()),
            };
            if whole.is_empty() && fraction.is_empty() || whole.len() > 19 {
                return Err(error());
            }
            // Fifteen digits of an hour are below a nanosecond, and keep the product within bounds.
            let fraction = &fraction[..fraction.len().min(15)];
            let whole: u128 = format!("0{whole}").parse().map_err(|_| error())?;
            let parts: u128 = format!("0{fraction}").parse().map_err(|_| error())?;
            let scale = fraction.bytes().fold(1, |scale, _| scale * 10);
            total += whole * nanos + parts * nanos / scale;
            if total > MAX_NANOS {
                return Err(error());
            }
            rest = after;
        }
    }
    match negative && total > 0 {
        true => Err(GoDurationError::Negative(text.to_owned())),
        false => u64::try_from(total)
            .map(Duration::from_nanos)
            .map_err(|_| error()),
    }
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
    fn reads_gos_durations() {
        for (text, nanos) in [
            ("0", 0),
            ("+5s", 5_000_000_000),
            ("-0s", 0),
            ("1.5s", 1_500_000_000),
            ("1m30s", 90_000_000_000),
            ("1h2m3s4ms5us6ns", 3_723_004_005_006),
            ("7µs7μs", 14_000),
            (".5h", 1_800_000_000_000),
            ("1.s", 1_000_000_000),
            ("0.0000000000000000001h", 0),
            ("2562047h47m16.854775807s", i64::MAX.unsigned_abs()),
        ] {
            assert_eq!(parse_go(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
        assert_eq!(parse_go("-1s"), Err(GoDurationError::Negative("-1s".into())));
        for bad in [
            "",
            "-",
            "+",
            "5",
            "s",
            ".s",
            "1d",
            "1 s",
            "s1",
            "1s1",
            "--1s",
            "2562047h47m16.854775808s",
            "99999999999999999999s",
        ] {
            assert_eq!(parse_go(bad), Err(GoDurationError::Syntax(bad.into())));
        }
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

    #[test]
    fn fuzz_durations() {
        bolero::check!().with_type::<String>().for_each(|text| {
            let _ = parse_go(text);
            if let Ok(duration) = parse(text) {
                assert_eq!(parse(&format(duration)), Ok(duration));
            }
        });
    }
}
