//! What a benchmark reports, and how sure it is.

use std::fmt;

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
        }
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            bench,
            metric,
            unit,
            value,
            peer,
            peer_value,
            ratio,
            ci_low,
            ci_high,
            n,
        } = self;
        write!(f, "{bench:<10} {metric:<36} {value:>14.6} {unit}")?;
        if let (Some(peer), Some(peer_value), Some(ratio)) = (peer, peer_value, ratio) {
            write!(f, "  {peer} {peer_value:.6}  ratio {ratio:.3}")?;
        }
        write!(f, "  [{ci_low:.4}, {ci_high:.4}] n={n}")
    }
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
    fn quantiles_of_few_samples() {
        assert_eq!(quantile(&[3.0, 1.0, 2.0], 0.5), 2.0);
        assert_eq!(quantile(&[3.0, 1.0, 2.0], 1.0), 3.0);
        assert!(quantile(&[], 0.5).is_nan());
    }
}
