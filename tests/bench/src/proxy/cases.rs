//! What is measured, a case each. All arms of a case run in every block, in shuffled order, right after one another;
//! ratios are taken block by block.

mod attacks;
mod bulk;
mod churn;
mod drain;
mod handshakes;
mod memory;
mod overload;
mod saturation;
mod start;

use std::collections::BTreeMap;

use rand::seq::SliceRandom as _;

use super::arms::{Arm, Arms};
use crate::record::{Record, median};

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Case {
    /// HTTP/1 with 64 connections, and one request at a time.
    Saturation,
    /// gRPC calls, many at a time.
    Grpc,
    /// Open loop at half of the slowest pair's peak.
    Tails,
    /// What the process holds, and what each idle connection adds.
    Memory,
    /// Bytes, plain and over mutual TLS.
    Bulk,
    /// A handshake per connection.
    Handshakes,
    /// Twice the peak, under a CPU limit.
    Overload,
    /// Endpoints that come and go.
    Churn,
    /// Others' requests while the server's sidecar is attacked.
    Attacks,
    /// From exec to ready.
    Start,
    /// SIGTERM under load.
    Drain,
}

impl Case {
    pub(crate) const ALL: [Self; 11] = [
        Self::Start,
        Self::Memory,
        Self::Saturation,
        Self::Grpc,
        Self::Tails,
        Self::Bulk,
        Self::Handshakes,
        Self::Churn,
        Self::Attacks,
        Self::Overload,
        Self::Drain,
    ];

    /// The arms that it can compare.
    pub(crate) fn arms(self) -> &'static [Arm] {
        use Arm::{Direct, HaproxyH1, HaproxyH2, Heddle, HeddleAgain, Linkerd, Nginx, Null, Ztunnel};
        match self {
            Self::Saturation => &[
                Direct,
                Null,
                Heddle,
                HeddleAgain,
                HaproxyH1,
                HaproxyH2,
                Nginx,
                Linkerd,
                Ztunnel,
            ],
            Self::Tails => &[Direct, Null, Heddle, HeddleAgain, HaproxyH1, HaproxyH2, Linkerd],
            Self::Grpc => &[Direct, Heddle, HeddleAgain, Linkerd],
            Self::Memory => &[Heddle, HeddleAgain, HaproxyH1, Linkerd],
            Self::Bulk => &[Null, Heddle, HaproxyH1, Linkerd, Ztunnel],
            Self::Handshakes => &[Null, Heddle, HaproxyH1, Linkerd, Ztunnel],
            Self::Overload => &[Heddle, HaproxyH2, Linkerd],
            Self::Attacks | Self::Churn | Self::Start | Self::Drain => &[Heddle],
        }
    }

    pub(crate) fn run(self, arms: &mut Arms, effort: Effort) -> anyhow::Result<Vec<Record>> {
        let here = arms.of(self.arms());
        match self {
            Self::Saturation => saturation::requests(arms, &here, effort),
            Self::Grpc => saturation::grpc(arms, &here, effort),
            Self::Tails => saturation::tails(arms, &here, effort),
            Self::Memory => memory::run(arms, &here),
            Self::Bulk => bulk::run(arms, &here, effort),
            Self::Handshakes => handshakes::run(arms, &here, effort),
            Self::Overload => overload::run(arms, &here, effort),
            Self::Attacks => attacks::run(arms, effort),
            Self::Churn => churn::run(arms, effort),
            Self::Start => start::run(arms, effort),
            Self::Drain => drain::run(arms, effort),
        }
    }
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    pub(crate) blocks: usize,
    pub(crate) seconds: u32,
}

/// Each arm's figures, block by block.
struct Samples<T>(BTreeMap<Arm, Vec<T>>);

impl<T> Samples<T> {
    fn take(
        here: &[Arm],
        blocks: usize,
        mut measure: impl FnMut(usize, Arm) -> anyhow::Result<T>,
    ) -> anyhow::Result<Self> {
        let mut samples: BTreeMap<Arm, Vec<T>> = BTreeMap::new();
        for block in 1..=blocks {
            let mut order = here.to_vec();
            order.shuffle(&mut rand::rng());
            for arm in order {
                samples.entry(arm).or_default().push(measure(block, arm)?);
            }
        }
        Ok(Self(samples))
    }

    fn column(&self, arm: Arm, figure: impl Fn(&T) -> f64) -> Vec<f64> {
        let all = self.0.get(&arm).map(Vec::as_slice).unwrap_or_default();
        all.iter().map(figure).collect()
    }

    /// What an arm adds to `direct`, block by block.
    fn added(&self, arm: Arm, figure: impl Fn(&T) -> f64) -> Vec<f64> {
        let with = self.column(arm, &figure);
        let without = self.column(Arm::Direct, &figure);
        with.iter()
            .zip(without)
            .map(|(with, without)| with - without)
            .collect()
    }

    /// One record for each arm beside `heddle`. Of the two haproxies the better one is the peer.
    fn beside(
        &self,
        metric: &str,
        unit: &'static str,
        higher: bool,
        of: impl Fn(Arm) -> Vec<f64>,
    ) -> Vec<Record> {
        let ours = of(Arm::Heddle);
        let haproxies = [Arm::HaproxyH1, Arm::HaproxyH2].map(&of);
        let [h1, h2] = haproxies.each_ref().map(|samples| median(samples));
        let (better, worse) = match (h1 > h2) == higher || h2.is_nan() {
            true => (Arm::HaproxyH1, Arm::HaproxyH2),
            false => (Arm::HaproxyH2, Arm::HaproxyH1),
        };
        let peers = self
            .0
            .keys()
            .copied()
            .filter(|&arm| arm != Arm::Heddle && arm != Arm::Direct && arm != worse);
        peers
            .map(|peer| {
                let name = match peer == better {
                    true => "haproxy".to_owned(),
                    false => peer.to_string(),
                };
                Record::beside("proxy", metric, unit, &ours, (&name, &of(peer)))
            })
            .collect()
    }
}
