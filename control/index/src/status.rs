//! What the statuses of objects should say: a pure judgement of the tables, beside what the statuses say now.
//!
//! The answers that proxies get (`inbound`, `outbound`) ask the same functions, so that a route whose status says that
//! it is not accepted is not in force either. This module knows conditions and their reasons; it never writes any:
//! whoever does asks [`Cluster::judgements`](crate::Cluster::judgements) when [`Cluster::judged`](crate::Cluster::judged)
//! has changed.
//!
//! Reasons are the Gateway API's and Linkerd's, where these have one.

mod authorization;
mod condition;
mod egress;
mod rate_limit;
pub(crate) mod route;
mod server;
mod told;

use crate::{
    config::Config,
    facts::{ObjectKey, RouteKind},
    store::Store,
};

pub(crate) use self::rate_limit::in_force as rate_limit_in_force;
pub use self::{
    condition::Condition,
    told::{ParentStatus, Told},
};

/// What Linkerd's policy controller calls itself in statuses; its users' tools look for that.
pub const CONTROLLER_NAME: &str = "linkerd.io/policy-controller";

/// A kind of object that is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// An HTTPRoute of policy.linkerd.io.
    PolicyHttpRoute,
    /// An HTTPRoute of the Gateway API.
    HttpRoute,
    /// A GRPCRoute.
    GrpcRoute,
    /// A TLSRoute.
    TlsRoute,
    /// A TCPRoute.
    TcpRoute,
    /// An EgressNetwork.
    EgressNetwork,
    /// An HTTPLocalRateLimitPolicy.
    RateLimit,
    /// A Server.
    Server,
    /// An AuthorizationPolicy.
    AuthorizationPolicy,
    /// A Service: it has no conditions of ours, but annotations that can be wrong.
    Service,
}

/// A status that does not say what it should.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// The kind of the object.
    pub subject: Subject,
    /// The object.
    pub key: ObjectKey,
    /// The object's uid: a successor of the same name is another object.
    pub uid: String,
    /// What its status should say.
    pub status: Status,
}

/// What a status should say.
#[derive(Clone, Debug, PartialEq)]
pub enum Status {
    /// A route's: our entry for each of its parents, among those of other controllers.
    Parents(Vec<ParentStatus>),
    /// Our conditions, among those of other controllers.
    Conditions(Vec<Condition>),
    /// A rate limit's: the same, and the Server that they are about.
    OfTarget(Vec<Condition>, Option<String>),
}

/// Something that a person should see on an object, as a Warning Event.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Notice {
    /// The kind of the object.
    pub subject: Subject,
    /// The object.
    pub key: ObjectKey,
    /// The object's uid.
    pub uid: String,
    /// A word for it.
    pub reason: &'static str,
    /// A sentence for it.
    pub note: String,
}

/// All that is wrong about the judged objects, in their order, and as Events for a person those parts of it that no
/// condition of every installed version of the kind can say.
pub(crate) fn judgements(store: &Store, config: &Config) -> Vec<Judgement> {
    let overlaps = server::Overlaps::find(store);
    let wrong = store.told.iter().filter_map(|((subject, key), told)| {
        let status = judge(store, config, &overlaps, *subject, key, told)?;
        (!told.says(&status)).then(|| Judgement {
            subject: *subject,
            key: key.clone(),
            uid: told.uid.clone(),
            status,
        })
    });
    wrong.collect()
}

/// What people should see as Events, in a fixed order.
pub(crate) fn notices(store: &Store, config: &Config) -> Vec<Notice> {
    let overlaps = server::Overlaps::find(store);
    let mut all = Vec::new();
    for ((subject, key), told) in &store.told {
        let mut say = |reason, note| {
            all.push(Notice {
                subject: *subject,
                key: key.clone(),
                uid: told.uid.clone(),
                reason,
                note,
            });
        };
        for problem in &told.problems {
            say("InvalidAnnotation", problem.clone());
        }
        let conditions = match judge(store, config, &overlaps, *subject, key, told) {
            Some(Status::Conditions(conditions))
                if matches!(subject, Subject::Server | Subject::AuthorizationPolicy) =>
            {
                conditions
            }
            _ => continue,
        };
        for condition in conditions.into_iter().filter(Condition::is_bad) {
            say(condition.reason_word(), condition.message);
        }
    }
    all
}

fn judge(
    store: &Store,
    config: &Config,
    overlaps: &server::Overlaps,
    subject: Subject,
    key: &ObjectKey,
    told: &Told,
) -> Option<Status> {
    let mut status = match subject {
        Subject::PolicyHttpRoute => {
            let facts = store.policy_http_routes.get(key)?;
            route::judge(store, config, RouteKind::PolicyHttp, key, facts)
        }
        Subject::HttpRoute => {
            let facts = store.gateway_http_routes.get(key)?;
            route::judge(store, config, RouteKind::GatewayHttp, key, facts)
        }
        Subject::GrpcRoute => {
            let facts = store.grpc_routes.get(key)?;
            route::judge(store, config, RouteKind::GatewayGrpc, key, facts)
        }
        Subject::TlsRoute => route::judge(store, config, RouteKind::GatewayTls, key, store.tls_route(key)?),
        Subject::TcpRoute => {
            let facts = store.tcp_routes.get(key)?;
            route::judge(store, config, RouteKind::GatewayTcp, key, facts)
        }
        Subject::EgressNetwork => {
            Status::Conditions(vec![egress::judge(config, store.egress_networks.get(key)?)])
        }
        Subject::RateLimit => rate_limit::judge(store, key, store.rate_limits.get(key)?),
        Subject::Server => Status::Conditions(vec![overlaps.judge(key)]),
        Subject::AuthorizationPolicy => authorization::judge(store, key, store.policies.get(key)?),
        Subject::Service => return None,
    };
    status.observe(told.generation);
    Some(status)
}

impl Status {
    /// Says of all conditions which generation of the object they are about.
    fn observe(&mut self, generation: i64) {
        let conditions: Vec<&mut Condition> = match self {
            Self::Parents(parents) => parents
                .iter_mut()
                .flat_map(|parent| &mut parent.conditions)
                .collect(),
            Self::Conditions(conditions) | Self::OfTarget(conditions, _) => conditions.iter_mut().collect(),
        };
        for condition in conditions {
            condition.observed_generation = generation;
        }
    }
}
