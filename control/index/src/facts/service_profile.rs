//! ServiceProfiles: the older way to describe a service's routes and traffic split.

use std::time::Duration;

use heddle_control_core::profile::{ProfileRoute, RequestMatch, ResponseClass, ResponseMatch, RetryBudget};
use heddle_k8s::service_profile::{
    RequestMatch as RequestSpec, ResponseMatch as ResponseSpec, RouteSpec, ServiceProfile, WeightedDst,
};
use heddle_mesh::{PortSet, duration};
use http::Method;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;
use regex::Regex;

use super::{ObjectKey, Tracked};
use crate::{
    dirty::Dirty,
    store::{Store, Table},
};

#[derive(Clone, Debug, PartialEq)]
pub struct ProfileFacts {
    pub(crate) routes: Vec<ProfileRoute>,
    pub(crate) budget: RetryBudget,
    /// Authorities, perhaps without a port, and weights in thousandths.
    pub(crate) overrides: Vec<(String, u32)>,
    pub(crate) opaque_ports: PortSet,
}

impl Tracked for ServiceProfile {
    type Facts = ProfileFacts;

    const MATTERS_TO_STATUS: bool = false;

    fn facts(&self) -> ProfileFacts {
        let complain = |problem: String| {
            tracing::warn!(
                namespace = self.namespace(),
                name = self.name_any(),
                problem,
                "Ignored a part of a ServiceProfile"
            );
        };
        let spec = &self.spec;
        let mut opaque_ports = PortSet::default();
        for text in &spec.opaque_ports {
            match text.parse::<PortSet>() {
                Ok(ports) => ports.iter().for_each(|port| opaque_ports.insert(port)),
                Err(error) => complain(format!("opaquePorts: {error}")),
            }
        }
        let routes = spec.routes.iter().filter_map(|spec| match route(spec) {
            Ok(route) => Some(route),
            Err(error) => {
                complain(format!("route `{}`: {error}", spec.name));
                None
            }
        });
        let overrides = spec.dst_overrides.iter().filter_map(|dst| match millis(dst) {
            Some(weight) => Some((dst.authority.trim_end_matches('.').to_owned(), weight)),
            None => {
                complain(format!(
                    "dstOverrides: the weight of {} is no number such as 1 or 500m",
                    dst.authority
                ));
                None
            }
        });
        let budget = spec.retry_budget.as_ref().map(|budget| {
            let ttl = duration::parse(&budget.ttl);
            if let Err(error) = &ttl {
                complain(format!("retryBudget.ttl: {error}"));
            }
            RetryBudget {
                ratio: budget.retry_ratio,
                min_per_second: budget.min_retries_per_second,
                ttl: ttl.unwrap_or(RetryBudget::default().ttl),
            }
        });
        ProfileFacts {
            routes: routes.collect(),
            budget: budget.unwrap_or_default(),
            overrides: overrides.collect(),
            opaque_ports,
        }
    }

    fn table(store: &mut Store) -> &mut Table<ProfileFacts> {
        &mut store.service_profiles
    }

    fn touch(_: &mut Store, _: &ObjectKey, _: &ProfileFacts, _: bool, dirty: &mut Dirty) {
        dirty.all_profiles();
    }
}

fn route(spec: &RouteSpec) -> Result<ProfileRoute, String> {
    let timeout: Option<Duration> = spec
        .timeout
        .as_deref()
        .map(duration::parse)
        .transpose()
        .map_err(|error| format!("timeout: {error}"))?;
    let class = |class: &heddle_k8s::service_profile::ResponseClass| {
        Ok(ResponseClass {
            condition: response(&class.condition)?,
            is_failure: class.is_failure,
        })
    };
    Ok(ProfileRoute {
        name: spec.name.clone(),
        condition: request(&spec.condition)?,
        retryable: spec.is_retryable,
        timeout: timeout.filter(|timeout| !timeout.is_zero()),
        responses: spec
            .response_classes
            .iter()
            .map(class)
            .collect::<Result<_, String>>()?,
    })
}

/// All parts that are given must hold; none at all is a mistake, not a match of everything.
fn request(spec: &RequestSpec) -> Result<RequestMatch, String> {
    let RequestSpec {
        path_regex,
        method,
        all,
        any,
        not,
    } = spec;
    let mut parts = Vec::new();
    if let Some(text) = path_regex {
        // Proxies anchor the expression at both ends.
        Regex::new(text).map_err(|_| format!("pathRegex: `{text}` is no regular expression"))?;
        parts.push(RequestMatch::PathRegex(text.clone()));
    }
    if let Some(text) = method {
        let method =
            Method::from_bytes(text.as_bytes()).map_err(|_| format!("method: `{text}` is no method"))?;
        parts.push(RequestMatch::Method(method));
    }
    if !all.is_empty() {
        parts.push(RequestMatch::All(
            all.iter().map(request).collect::<Result<_, _>>()?,
        ));
    }
    if !any.is_empty() {
        parts.push(RequestMatch::Any(
            any.iter().map(request).collect::<Result<_, _>>()?,
        ));
    }
    if let Some(inner) = not {
        parts.push(RequestMatch::Not(Box::new(request(inner)?)));
    }
    match (parts.pop(), parts.is_empty()) {
        (None, _) => Err("a condition is empty".to_owned()),
        (Some(one), true) => Ok(one),
        (Some(last), false) => {
            parts.push(last);
            Ok(RequestMatch::All(parts))
        }
    }
}

fn response(spec: &ResponseSpec) -> Result<ResponseMatch, String> {
    let ResponseSpec {
        status,
        all,
        any,
        not,
    } = spec;
    let mut parts = Vec::new();
    if let Some(range) = status {
        let (min, max) = (range.min.unwrap_or(100), range.max.unwrap_or(599));
        if min > max || min < 100 || max > 599 {
            return Err(format!("status: {min} to {max} is no range of statuses"));
        }
        parts.push(ResponseMatch::Status { min, max });
    }
    if !all.is_empty() {
        parts.push(ResponseMatch::All(
            all.iter().map(response).collect::<Result<_, _>>()?,
        ));
    }
    if !any.is_empty() {
        parts.push(ResponseMatch::Any(
            any.iter().map(response).collect::<Result<_, _>>()?,
        ));
    }
    if let Some(inner) = not {
        parts.push(ResponseMatch::Not(Box::new(response(inner)?)));
    }
    match (parts.pop(), parts.is_empty()) {
        (None, _) => Err("a condition is empty".to_owned()),
        (Some(one), true) => Ok(one),
        (Some(last), false) => {
            parts.push(last);
            Ok(ResponseMatch::All(parts))
        }
    }
}

/// A weight in thousandths, as Linkerd counts: `1` and `1000m` are the same.
fn millis(dst: &WeightedDst) -> Option<u32> {
    match &dst.weight {
        IntOrString::Int(number) => u32::try_from(*number).ok()?.checked_mul(1000),
        IntOrString::String(text) => match text.strip_suffix('m') {
            Some(thousandths) => thousandths.parse().ok(),
            None => text.parse::<u32>().ok()?.checked_mul(1000),
        },
    }
}
