//! What a benchmark reports, and how sure it is.

use rand::Rng as _;
use serde::Serialize;

/// One figure. Units are SI. The interval is the ratio's when there is a peer, and the value's when there is none.
#[derive(Debug, Serialize)]
pub(crate) struct Record {
    pub(crate) bench: &'static str,
    pub(crate) metric: String,
    pub(crate) unit: &'static str,
    pub(crate) value: f64,
    pub(crate) peer: Option<String>,
    pub(crate) peer_value: Option<f64>,
    pub(crate) ratio: Option<f64>,
    pub(crate) ci_low: f64,
    pub(crate) ci_high: f64,
    pub(crate) n: usize,
    /// Block by block.
    samples: Vec<f64>,
    peer_samples: Vec<f64>,
}

impl Record {
    /// A figure without a peer: the median of `samples` with its interval.
    pub(crate) fn alone(
        bench: &'static str,
        metric: impl Into<String>,
        unit: &'static str,
        samples: &[f64],
    ) -> Self {
        let (ci_low, ci_high) = interval(samples);
        Self {
            bench,
            metric: metric.into(),
            unit,
            value: median(samples),
            peer: None,
            peer_value: None,
            ratio: None,
            ci_low,
            ci_high,
            n: samples.len(),
            samples: samples.to_vec(),
            peer_samples: Vec::new(),
        }
    }

    /// A figure beside a peer's, block by block: the ratio is the median of each block's own ratio, since what
    /// disturbs one block disturbs both arms in it.
    pub(crate) fn beside(
        bench: &'static str,
        metric: impl Into<String>,
        unit: &'static str,
        samples: &[f64],
        (peer, peer_samples): (&str, &[f64]),
    ) -> Self {
        let ratios: Vec<f64> = samples
            .iter()
            .zip(peer_samples)
            .map(|(ours, theirs)| ours / theirs)
            .collect();
        let (ci_low, ci_high) = interval(&ratios);
        Self {
            bench,
            metric: metric.into(),
            unit,
            value: median(samples),
            peer: Some(peer.to_owned()),
            peer_value: Some(median(peer_samples)),
            ratio: Some(median(&ratios)),
            ci_low,
            ci_high,
            n: ratios.len(),
            samples: samples.to_vec(),
            peer_samples: peer_samples.to_vec(),
        }
    }
}

/// The records for people, a line each.
pub(crate) fn table(records: &[Record]) -> String {
    let widest = |of: fn(&Record) -> usize| records.iter().map(of).max().unwrap_or_default();
    let metrics = widest(|record| record.metric.len());
    let peers = widest(|record| record.peer.as_deref().map_or(0, str::len));
    let mut text = String::new();
    for record in records {
        let Record {
            metric,
            unit,
            value,
            peer,
            peer_value,
            ratio,
            ci_low,
            ci_high,
            n,
            ..
        } = record;
        let value = with_unit(*value, unit);
        text += &format!("{metric:<metrics$}  {value:>12}");
        match (peer, peer_value, ratio) {
            (Some(peer), Some(peer_value), Some(ratio)) => {
                let peer_value = with_unit(*peer_value, unit);
                text += &format!(
                    "  {peer:<peers$}  {peer_value:>12}  ratio {ratio:.2} [{ci_low:.2}, {ci_high:.2}]"
                );
            }
            _ if *n > 1 => {
                text += &format!("  [{}, {}]", with_unit(*ci_low, unit), with_unit(*ci_high, unit));
            }
            _ => {}
        }
        text += &format!("  n={n}\n");
    }
    text
}

/// A figure as people read it: four digits and a prefix.
fn with_unit(value: f64, unit: &str) -> String {
    let (scale, prefix) = match (unit, value.abs()) {
        ("1" | "GiB/s", _) => (1.0, ""),
        (_, 0.0) => (1.0, ""),
        ("s", size) if size < 1e-3 => (1e-6, "u"),
        ("s", size) if size < 1.0 => (1e-3, "m"),
        ("B", size) if size >= 1e6 => (1e6, "M"),
        ("B", size) if size >= 1e4 => (1e3, "k"),
        _ => (1.0, ""),
    };
    let value = value / scale;
    let digits = match value.abs() {
        size if size >= 1000.0 => 0,
        size if size >= 100.0 => 1,
        size if size >= 10.0 => 2,
        _ => 3,
    };
    let unit = match unit {
        "1" => String::new(),
        "1/s" => " /s".to_owned(),
        unit => format!(" {prefix}{unit}"),
    };
    format!("{value:.digits$}{unit}")
}

/// The middle sample; NaN when there is none.
pub(crate) fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

/// The sample at `q` (0 to 1) of the sorted samples, nearest rank; NaN when there is none.
pub(crate) fn quantile(samples: &[f64], q: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted
        .get((last as f64 * q).round() as usize)
        .copied()
        .unwrap_or(f64::NAN)
}

/// The 95 % bootstrap interval of the median: 2,000 resamples.
fn interval(samples: &[f64]) -> (f64, f64) {
    if samples.is_empty() {
        return (f64::NAN, f64::NAN);
    }
    let mut rng = rand::rng();
    let medians: Vec<f64> = (0..2_000)
        .map(|_| {
            let resample: Vec<f64> = (0..samples.len())
                .map(|_| samples[rng.random_range(0..samples.len())])
                .collect();
            median(&resample)
        })
        .collect();
    (quantile(&medians, 0.025), quantile(&medians, 0.975))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratio_is_taken_block_by_block() {
        let record = Record::beside("b", "m", "s", &[1.0, 20.0, 3.0], ("peer", &[2.0, 40.0, 6.0]));
        assert_eq!(
            (record.ratio, record.ci_low, record.ci_high),
            (Some(0.5), 0.5, 0.5)
        );
        assert_eq!((record.value, record.peer_value), (3.0, Some(6.0)));
    }

    #[test]
    fn figures_have_prefixes_that_fit() {
        let shown = [
            (0.000_146, "s"),
            (1.5, "s"),
            (39.3e6, "B"),
            (44_715.2, "1/s"),
            (0.84, "1"),
        ];
        assert_eq!(
            shown.map(|(value, unit)| with_unit(value, unit)),
            ["146.0 us", "1.500 s", "39.30 MB", "44715 /s", "0.840"]
        );
    }

    #[test]
    fn quantiles_of_few_samples() {
        assert_eq!(quantile(&[3.0, 1.0, 2.0], 0.5), 2.0);
        assert_eq!(quantile(&[3.0, 1.0, 2.0], 1.0), 3.0);
        assert!(quantile(&[], 0.5).is_nan());
    }
}
