//! The checker: what every stream was told, folded, equals a fresh answer to the same question.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use linkerd2_proxy_api::{
    destination::{DestinationProfile, Update, WeightedAddr, update},
    inbound::Server,
    outbound::OutboundPolicy,
};
use prost::Message as _;

use super::{
    call::{Call, Connector, Messages},
    fleet::{Fleet, GET, GET_PROFILE, Services, Stream, WATCH},
};

/// Fresh questions at a time, on one connection.
const ASKED: usize = 64;
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// What a client knows after all that it was told.
#[derive(Debug, PartialEq)]
enum Known {
    Endpoints {
        exists: bool,
        addresses: BTreeMap<SocketAddr, WeightedAddr>,
    },
    Profile(Box<DestinationProfile>),
    Outbound(Box<OutboundPolicy>),
    Inbound(Box<Server>),
}

fn fold(call: &Call, told: &[Bytes]) -> Result<Known> {
    let last = told.last().context("nothing was told")?.clone();
    Ok(match call.path {
        GET => {
            let (mut exists, mut addresses) = (true, BTreeMap::new());
            for message in told {
                match Update::decode(message.clone())?
                    .update
                    .context("an empty update")?
                {
                    update::Update::Add(set) => {
                        exists = true;
                        for one in set.addrs {
                            addresses.insert(address(one.addr)?, one);
                        }
                    }
                    update::Update::Remove(set) => {
                        for one in set.addrs {
                            addresses.remove(&address(Some(one))?);
                        }
                    }
                    update::Update::NoEndpoints(none) => {
                        exists = none.exists;
                        addresses.clear();
                    }
                }
            }
            Known::Endpoints { exists, addresses }
        }
        GET_PROFILE => Known::Profile(Box::new(DestinationProfile::decode(last)?)),
        WATCH => Known::Outbound(Box::new(OutboundPolicy::decode(last)?)),
        _ => Known::Inbound(Box::new(Server::decode(last)?)),
    })
}

fn address(addr: Option<linkerd2_proxy_api::net::TcpAddress>) -> Result<SocketAddr> {
    let addr = addr.context("an endpoint without an address")?;
    let ip = std::net::IpAddr::try_from(addr.ip.context("an address without an IP")?)?;
    Ok(SocketAddr::new(ip, u16::try_from(addr.port)?))
}

/// Waits until every stream knows what a fresh one is told; returns how many streams were compared.
pub(crate) async fn converged(
    fleet: &Fleet,
    connector: &Connector,
    services: Services,
    limit: Duration,
) -> Result<usize> {
    let begun = Instant::now();
    loop {
        let fresh = fresh(&fleet.streams, connector, services).await?;
        let wrong = compare(&fleet.streams, &fresh)?;
        let (ended, why) = fleet.ended();
        if ended > 0 {
            bail!("{ended} streams have ended: {}", why.unwrap_or_default());
        }
        let Some((count, example)) = wrong else {
            return Ok(fleet.streams.len());
        };
        if begun.elapsed() > limit {
            bail!("{count} streams differ from a fresh answer after {limit:?}: {example}");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// How many streams differ, and one of them.
fn compare(streams: &[Arc<Stream>], fresh: &HashMap<String, Known>) -> Result<Option<(usize, String)>> {
    let (mut count, mut example) = (0, None);
    for stream in streams {
        let known = fold(&stream.call, &stream.told.lock())?;
        let expected = fresh
            .get(&stream.call.class)
            .context("every question was asked anew")?;
        if known != *expected {
            count += 1;
            example.get_or_insert_with(|| format!("{}: {known:?} is not {expected:?}", stream.call.path));
        }
    }
    Ok(example.map(|example| (count, example)))
}

/// Fresh answers to all classes of questions of `streams`.
async fn fresh(
    streams: &[Arc<Stream>],
    connector: &Connector,
    services: Services,
) -> Result<HashMap<String, Known>> {
    let mut calls: Vec<Call> = streams.iter().map(|stream| stream.call.clone()).collect();
    calls.sort_by(|a, b| a.class.cmp(&b.class));
    calls.dedup_by(|a, b| a.class == b.class);
    let (destination, _a) = connector.connect(services.destination).await?;
    let (policy, _b) = connector.connect(services.policy).await?;
    stream::iter(calls)
        .map(|call| {
            let to_destination = matches!(call.path, GET | GET_PROFILE);
            let sender = if to_destination {
                destination.clone()
            } else {
                policy.clone()
            };
            async move {
                let asked = async {
                    let mut messages = Messages::open(sender, &call).await?;
                    messages.next().await?.context("no answer")
                };
                let answer = tokio::time::timeout(ANSWER_LIMIT, asked)
                    .await
                    .context("no answer in time")??;
                let known = fold(&call, &[answer])?;
                anyhow::Ok((call.class, known))
            }
        })
        .buffer_unordered(ASKED)
        .try_collect()
        .await
}
