//! The policy of an address: `OutboundPolicies.Watch` and, side by side, `Destination.GetProfile`.
//!
//! The policy decides when there is one. Where the policy service knows none (it is an older Linkerd, or the address
//! is no service's) the profile does, and without a profile connections go where the application sent them.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use heddle_proxy_policy::{ClientPolicy, Profile};
use linkerd2_proxy_api::{
    destination::GetDestination,
    outbound::{TrafficSpec, traffic_spec},
};
use parking_lot::Mutex;
use tokio::{sync::watch, time::sleep};
use tonic::Code;
use tracing::{debug, error, warn};

use super::{
    Inner, Outbound,
    stream::{self, Event, Next},
};

/// A profile that comes later than this still counts, but is not waited for. Linkerd's.
const PROFILE_TIMEOUT: Duration = Duration::from_millis(500);
/// A policy that comes later than this still counts, but connections fail until then. Linkerd's failfast.
const POLICY_TIMEOUT: Duration = Duration::from_secs(3);

/// What the two streams have said.
#[derive(Default)]
struct Heard {
    policy: Option<Policy>,
    profile: Option<Profile>,
    profile_waited: bool,
}

enum Policy {
    Some(Arc<ClientPolicy>),
    /// The policy service has none.
    None,
    Invalid(Arc<str>),
}

pub(super) async fn follow(inner: &Inner, addr: SocketAddr, publish: &watch::Sender<Outbound>) {
    let heard = Mutex::new(Heard::default());
    let update = |change: &mut dyn FnMut(&mut Heard)| {
        let mut heard = heard.lock();
        change(&mut heard);
        if let Some(outbound) = heard.decide(addr, inner.config.outbound.detect_timeout) {
            debug!(%addr, "Policy changed");
            publish.send_replace(outbound);
        }
    };
    let wanted = inner
        .config
        .control
        .profile_networks
        .as_ref()
        .is_none_or(|nets| nets.iter().any(|net| net.contains(&addr.ip())));
    tokio::join!(
        follow_policy(inner, addr, publish, &update),
        async {
            if wanted {
                follow_profile(inner, addr, &update).await;
            } else {
                update(&mut |heard| heard.profile = Some(Profile::default()));
            }
        },
        async {
            sleep(PROFILE_TIMEOUT).await;
            update(&mut |heard| heard.profile_waited = true);
        },
        async {
            sleep(POLICY_TIMEOUT).await;
            publish.send_if_modified(|now| match now {
                Outbound::Pending => {
                    *now = Outbound::Unavailable("the policy service did not answer".into());
                    true
                }
                _ => false,
            });
        },
    );
}

type Update<'u> = &'u (dyn Fn(&mut dyn FnMut(&mut Heard)) + Send + Sync);

impl Heard {
    fn decide(&self, addr: SocketAddr, detect_timeout: Duration) -> Option<Outbound> {
        match (&self.policy, &self.profile) {
            (Some(Policy::Some(policy)), _) => Some(Outbound::Policy(policy.clone())),
            (Some(Policy::Invalid(why)), _) => Some(Outbound::Invalid(why.clone())),
            (Some(Policy::None), None) if !self.profile_waited => None,
            (Some(Policy::None), profile) => {
                let none = Profile::default();
                let profile = profile.as_ref().unwrap_or(&none);
                Some(Outbound::Policy(Arc::new(ClientPolicy::synthesize(
                    addr,
                    profile,
                    detect_timeout,
                ))))
            }
            (None, _) => None,
        }
    }
}

async fn follow_policy(
    inner: &Inner,
    addr: SocketAddr,
    publish: &watch::Sender<Outbound>,
    update: Update<'_>,
) {
    let open = || {
        let mut client = inner.outbound_policies.clone();
        let request = TrafficSpec {
            source_workload: inner.config.control.workload.clone(),
            target: Some(traffic_spec::Target::Addr(heddle_proxy_policy::net::to_proto(
                addr,
            ))),
        };
        async move { client.watch(request).await }
    };
    stream::follow(
        format!("outbound policy of {addr}"),
        inner.config.control.streams,
        open,
        |event| {
            match event {
                Event::Message(policy, _) => {
                    let mut policy = Some(match ClientPolicy::try_from(policy) {
                        Ok(policy) => Policy::Some(Arc::new(policy)),
                        Err(error) => {
                            error!(%addr, %error, "Failing requests: the outbound policy is invalid");
                            Policy::Invalid(error.to_string().into())
                        }
                    });
                    update(&mut |heard| heard.policy = policy.take());
                }
                Event::Failed(status) => match status.code() {
                    Code::NotFound | Code::Unimplemented => {
                        update(&mut |heard| heard.policy = Some(Policy::None))
                    }
                    _ => {
                        // What was known stays; a first lookup fails at once rather than let connections wait.
                        publish.send_if_modified(|now| match now {
                            Outbound::Pending if status.code() == Code::InvalidArgument => {
                                *now = Outbound::Unavailable(status.message().into());
                                true
                            }
                            _ => false,
                        });
                    }
                },
            }
            Next::Retry
        },
    )
    .await;
}

async fn follow_profile(inner: &Inner, addr: SocketAddr, update: Update<'_>) {
    let open = || {
        let mut client = inner.destination.clone();
        let request = GetDestination {
            scheme: "k8s".to_owned(),
            path: addr.to_string(),
            context_token: inner.config.control.destination_context.clone(),
        };
        async move { client.get_profile(request).await }
    };
    stream::follow(
        format!("profile of {addr}"),
        inner.config.control.streams,
        open,
        |event| match event {
            Event::Message(profile, _) => {
                match Profile::try_from(profile) {
                    Ok(profile) => {
                        let mut profile = Some(profile);
                        update(&mut |heard| heard.profile = profile.take());
                    }
                    Err(error) => warn!(%addr, %error, "Ignoring an invalid profile"),
                }
                Next::Retry
            }
            Event::Failed(status) if status.code() == Code::InvalidArgument => {
                update(&mut |heard| heard.profile = Some(Profile::default()));
                Next::Stop
            }
            Event::Failed(_) => Next::Retry,
        },
    )
    .await;
}
