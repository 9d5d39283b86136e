//! What the destination service says of an address: the service behind it with its ServiceProfile, or the endpoint
//! that it is.

use std::{collections::HashMap, ops::RangeInclusive, sync::Arc, time::Duration};

use http::{Method, StatusCode};
use linkerd2_proxy_api::destination as proto;
use regex::Regex;

use crate::{
    Endpoint, Invalid,
    budget::RetryBudget,
    invalid::{duration, each},
    route,
};

/// Labels kept of one route.
const LABELS_MAX: usize = 16;

/// A destination profile.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// `service.namespace.svc.domain` without its port, when the address is a service's.
    pub fully_qualified_name: Option<String>,
    /// Whether the bytes must not be looked into.
    pub opaque: bool,
    /// The endpoint, when the address is a pod's.
    pub endpoint: Option<Endpoint>,
    /// The ServiceProfile's routes; the first that fits a request holds.
    pub routes: Vec<ProfileRoute>,
    /// What all retries to the service may spend together.
    pub retry_budget: Option<Arc<RetryBudget>>,
    /// Where requests go in the service's place.
    pub targets: Vec<Target>,
}

/// A route of a ServiceProfile.
#[derive(Clone, Debug)]
pub struct ProfileRoute {
    /// Requests it is for.
    pub condition: Condition,
    /// Its labels in metrics, sorted by name.
    pub labels: Vec<(String, String)>,
    /// What its responses mean; the first that fits holds.
    pub classes: Vec<ResponseClass>,
    /// Whether failures are tried again.
    pub is_retryable: bool,
    /// How long a request may take until the response's head, retries included.
    pub timeout: Option<Duration>,
}

/// A share of the requests to a service, sent elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The discovery path: `service.namespace.svc.domain:port`.
    pub path: String,
    /// The share.
    pub weight: u32,
}

/// What a route of a ServiceProfile says beyond where requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteProfile {
    /// The service with its port.
    pub service: String,
    /// The route's labels in metrics; none for requests that no route fits.
    pub labels: Vec<(String, String)>,
    /// What responses mean.
    pub classes: Vec<ResponseClass>,
}

/// A condition on requests.
#[derive(Clone, Debug)]
pub enum Condition {
    /// All hold.
    All(Vec<Condition>),
    /// One holds.
    Any(Vec<Condition>),
    /// It does not hold.
    Not(Box<Condition>),
    /// The whole path matches.
    Path(Regex),
    /// The method is this.
    Method(Method),
}

/// What a response means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseClass {
    /// Responses it is for.
    pub condition: ResponseCondition,
    /// Whether they are failures.
    pub is_failure: bool,
}

/// A condition on responses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResponseCondition {
    /// All hold.
    All(Vec<ResponseCondition>),
    /// One holds.
    Any(Vec<ResponseCondition>),
    /// It does not hold.
    Not(Box<ResponseCondition>),
    /// The status is one of these.
    Status(RangeInclusive<u16>),
}

impl Profile {
    /// Whether it says more of HTTP requests than where the service is: then it comes before the policy's routes.
    pub fn has_routes_or_targets(&self) -> bool {
        self.fully_qualified_name.is_some() && !(self.routes.is_empty() && self.targets.is_empty())
    }
}

impl Condition {
    /// Whether it holds for a request. `path` is canonical.
    pub fn holds(&self, path: &str, method: &Method) -> bool {
        match self {
            Self::All(all) => all.iter().all(|one| one.holds(path, method)),
            Self::Any(any) => any.iter().any(|one| one.holds(path, method)),
            Self::Not(one) => !one.holds(path, method),
            Self::Path(regex) => regex.is_match(path),
            Self::Method(one) => one == method,
        }
    }
}

impl ResponseCondition {
    fn holds(&self, status: u16) -> bool {
        match self {
            Self::All(all) => all.iter().all(|one| one.holds(status)),
            Self::Any(any) => any.iter().any(|one| one.holds(status)),
            Self::Not(one) => !one.holds(status),
            Self::Status(range) => range.contains(&status),
        }
    }
}

impl RouteProfile {
    /// Whether a response is a failure: by its gRPC status where it has one, else by the route's classes, else by
    /// its status.
    pub fn is_failure(&self, status: StatusCode, grpc_status: Option<u32>) -> bool {
        if let Some(code) = grpc_status {
            return is_grpc_failure(code);
        }
        let class = self
            .classes
            .iter()
            .find(|class| class.condition.holds(status.as_u16()));
        class.map_or(status.is_server_error(), |class| class.is_failure)
    }
}

/// Linkerd's classes: what the server could not do is a failure, what the client asked wrongly is not.
pub fn is_grpc_failure(code: u32) -> bool {
    matches!(code, 2 | 4 | 7 | 8 | 12 | 13 | 14 | 15)
}

impl TryFrom<proto::DestinationProfile> for Profile {
    type Error = Invalid;

    fn try_from(profile: proto::DestinationProfile) -> Result<Self, Invalid> {
        let proto::DestinationProfile {
            fully_qualified_name,
            opaque_protocol,
            endpoint,
            routes,
            retry_budget,
            dst_overrides,
            parent_ref: _,
            profile_ref: _,
        } = profile;
        Ok(Self {
            fully_qualified_name: (!fully_qualified_name.is_empty()).then_some(fully_qualified_name),
            opaque: opaque_protocol,
            endpoint: endpoint
                .map(|one| {
                    Endpoint::from_proto(one, &HashMap::new()).map_err(|error| error.within("endpoint"))
                })
                .transpose()?,
            routes: each("routes", routes, ProfileRoute::try_from)?,
            retry_budget: retry_budget
                .map(|budget| RetryBudget::try_from(budget).map(Arc::new))
                .transpose()?,
            targets: each("dst_overrides", dst_overrides, |target| {
                match target.authority.is_empty() {
                    true => Err(Invalid::missing("authority")),
                    false => Ok(Target {
                        path: target.authority,
                        weight: target.weight,
                    }),
                }
            })?,
        })
    }
}

impl TryFrom<proto::Route> for ProfileRoute {
    type Error = Invalid;

    fn try_from(route: proto::Route) -> Result<Self, Invalid> {
        let proto::Route {
            condition,
            response_classes,
            metrics_labels,
            is_retryable,
            timeout,
        } = route;
        let mut labels: Vec<_> = metrics_labels
            .into_iter()
            .filter(|(name, _)| crate::endpoint::is_label_name(name))
            .collect();
        labels.sort_unstable();
        labels.truncate(LABELS_MAX);
        Ok(Self {
            condition: condition
                .ok_or_else(|| Invalid::missing("condition"))?
                .try_into()
                .map_err(|error: Invalid| error.within("condition"))?,
            labels,
            classes: each("response_classes", response_classes, |class| {
                Ok(ResponseClass {
                    condition: class
                        .condition
                        .ok_or_else(|| Invalid::missing("condition"))?
                        .try_into()?,
                    is_failure: class.is_failure,
                })
            })?,
            is_retryable,
            timeout: timeout
                .map(|timeout| duration("timeout", timeout))
                .transpose()?
                .filter(|timeout| !timeout.is_zero()),
        })
    }
}

impl TryFrom<proto::RequestMatch> for Condition {
    type Error = Invalid;

    // The decoder bounds how deep conditions are nested.
    fn try_from(condition: proto::RequestMatch) -> Result<Self, Invalid> {
        use proto::request_match::Match;
        Ok(
            match condition.r#match.ok_or_else(|| Invalid::missing("match"))? {
                Match::All(all) => Self::All(each("all", all.matches, Self::try_from)?),
                Match::Any(any) => Self::Any(each("any", any.matches, Self::try_from)?),
                Match::Not(not) => Self::Not(Box::new((*not).try_into()?)),
                Match::Path(path) => Self::Path(route::whole_regex("path.regex", path.regex.trim())?),
                Match::Method(method) => {
                    Self::Method(method.try_into().map_err(|error| Invalid::new("method", error))?)
                }
            },
        )
    }
}

impl TryFrom<proto::ResponseMatch> for ResponseCondition {
    type Error = Invalid;

    fn try_from(condition: proto::ResponseMatch) -> Result<Self, Invalid> {
        use proto::response_match::Match;
        Ok(
            match condition.r#match.ok_or_else(|| Invalid::missing("match"))? {
                Match::All(all) => Self::All(each("all", all.matches, Self::try_from)?),
                Match::Any(any) => Self::Any(each("any", any.matches, Self::try_from)?),
                Match::Not(not) => Self::Not(Box::new((*not).try_into()?)),
                Match::Status(range) => {
                    let read = |value: u32| match u16::try_from(value) {
                        Ok(status) if (100..600).contains(&status) => Ok(status),
                        _ => Err(Invalid::new("status", "must be a range of HTTP statuses")),
                    };
                    // One that is not given is the other.
                    let (min, max) = match (range.min, range.max) {
                        (0, max) => (read(max)?, read(max)?),
                        (min, 0) => (read(min)?, read(min)?),
                        (min, max) => (read(min)?, read(max)?),
                    };
                    if min > max {
                        return Err(Invalid::new("status", "min must not be above max"));
                    }
                    Self::Status(min..=max)
                }
            },
        )
    }
}

#[cfg(test)]
mod tests;
