//! The policy of an address or a name: `OutboundPolicies.Watch` and, side by side, `Destination.GetProfile`.
//!
//! The policy decides when there is one. Where the policy service knows none (it is an older Linkerd, or the address
//! is no service's) the profile does, and without a profile connections go where the application sent them; a name that
//! neither knows goes nowhere. A ServiceProfile's routes come before the policy's (see `ClientPolicy::under`), so that the
//! first answer waits for the profile, too, for a moment.

use std::{sync::Arc, time::Duration};

use heddle_proxy_policy::{ClientPolicy, Profile};
use linkerd2_proxy_api::outbound::{TrafficSpec, traffic_spec};
use parking_lot::Mutex;
use tokio::{sync::watch, time::sleep};
use tonic::Code;
use tracing::{debug, error};

use super::{
    Inner, Outbound, profile,
    stream::{self, Event, Next},
};
use crate::dst::Dst;

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

pub(super) async fn follow(inner: &Inner, dst: &Dst, publish: &watch::Sender<Outbound>) {
    let heard = Mutex::new(Heard::default());
    let update = |change: &mut dyn FnMut(&mut Heard)| {
        let mut heard = heard.lock();
        change(&mut heard);
        if let Some(outbound) = heard.decide(dst, inner.config.outbound.detect_timeout) {
            debug!(%dst, "Policy changed");
            publish.send_replace(outbound);
        }
    };
    let control = &inner.config.control;
    let wanted = match dst {
        Dst::Addr(addr) => control
            .profile_networks
            .as_ref()
            .is_none_or(|nets| nets.iter().any(|net| net.contains(&addr.ip()))),
        Dst::Name(name) => control.profile_suffixes.contain(name),
    };
    tokio::join!(
        follow_policy(inner, dst, publish, &update),
        async {
            if wanted {
                follow_profile(inner, dst, &heard, &update).await;
            } else {
                update(&mut |heard| heard.profile = Some(Profile::default()));
            }
        },
        async {
            sleep(PROFILE_TIMEOUT).await;
            give_up_waiting(&heard, &update);
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
    fn decide(&self, dst: &Dst, detect_timeout: Duration) -> Option<Outbound> {
        match (&self.policy, &self.profile) {
            (None, _) => None,
            (Some(Policy::Invalid(why)), _) => Some(Outbound::Invalid(why.clone())),
            (Some(_), None) if !self.profile_waited => None,
            (Some(Policy::Some(policy)), None) => Some(Outbound::Policy(policy.clone())),
            (Some(Policy::Some(policy)), Some(profile)) => {
                Some(Outbound::Policy(policy.under(profile, dst.port())))
            }
            (Some(Policy::None), profile) => {
                let none = Profile::default();
                let profile = profile.as_ref().unwrap_or(&none);
                if dst.addr().is_none()
                    && profile.fully_qualified_name.is_none()
                    && profile.endpoint.is_none()
                {
                    return Some(Outbound::Unknown);
                }
                let policy = ClientPolicy::synthesize(dst.addr(), dst.port(), profile, detect_timeout);
                Some(Outbound::Policy(Arc::new(policy).under(profile, dst.port())))
            }
        }
    }
}

/// The policy holds without a profile, if there is none yet.
fn give_up_waiting(heard: &Mutex<Heard>, update: Update<'_>) {
    let waiting = {
        let heard = heard.lock();
        heard.profile.is_none() && !heard.profile_waited
    };
    if waiting {
        update(&mut |heard| heard.profile_waited = true);
    }
}

async fn follow_policy(inner: &Inner, dst: &Dst, publish: &watch::Sender<Outbound>, update: Update<'_>) {
    let open = || {
        let mut client = inner.outbound_policies.clone();
        let request = TrafficSpec {
            source_workload: inner.config.control.workload.clone(),
            target: Some(match dst {
                Dst::Addr(addr) => traffic_spec::Target::Addr(heddle_proxy_policy::net::to_proto(*addr)),
                Dst::Name(name) => traffic_spec::Target::Authority(name.to_string()),
            }),
        };
        async move { client.watch(request).await }
    };
    stream::follow(
        format!("outbound policy of {dst}"),
        inner.config.control.streams(&inner.config.control.policy),
        open,
        |event| {
            match event {
                Event::Message(policy, _) => {
                    let mut policy = Some(match ClientPolicy::try_from(policy) {
                        Ok(policy) => Policy::Some(Arc::new(policy)),
                        Err(error) => {
                            error!(%dst, %error, "Failing requests: the outbound policy is invalid");
                            Policy::Invalid(error.to_string().into())
                        }
                    });
                    update(&mut |heard| heard.policy = policy.take());
                }
                Event::Failed(status) => match status.code() {
                    Code::NotFound | Code::Unimplemented => {
                        update(&mut |heard| heard.policy = Some(Policy::None))
                    }
                    // A name that the policy service does not take for one; the destination service may.
                    Code::InvalidArgument if dst.addr().is_none() => {
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

async fn follow_profile(inner: &Inner, dst: &Dst, heard: &Mutex<Heard>, update: Update<'_>) {
    profile::follow(inner, &dst.to_string(), |event| match event {
        Event::Message(profile, _) => {
            let mut profile = Some(profile);
            update(&mut |heard| heard.profile = profile.take());
            Next::Retry
        }
        Event::Failed(status) if status.code() == Code::NotFound => {
            update(&mut |heard| heard.profile = Some(Profile::default()));
            Next::Retry
        }
        Event::Failed(status) if status.code() == Code::InvalidArgument => {
            update(&mut |heard| heard.profile = Some(Profile::default()));
            Next::Stop
        }
        // It is not waited for any longer; what was known stays.
        Event::Failed(_) => {
            give_up_waiting(heard, update);
            Next::Retry
        }
    })
    .await;
}
