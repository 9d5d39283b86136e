//! ServiceProfiles: the older way to describe a service's routes and traffic split.

use heddle_control_core::profile::{ProfileRoute, RequestMatch, ResponseClass, ResponseMatch, RetryBudget};
use heddle_k8s::service_profile::{
    RequestMatch as RequestSpec, ResponseMatch as ResponseSpec, RouteSpec, ServiceProfile, WeightedDst,
};
use heddle_mesh::{
    PortSet,
    duration::{self, GoDurationError},
};
use http::Method;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;
use regex::Regex;

use super::{ObjectKey, Tracked};
use crate::{
    dirty::Dirty,
    pool::Pools,
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

    fn facts(&self, _: &Pools) -> ProfileFacts {
        let (facts, ignored) = read(self);
        for problem in ignored {
            tracing::warn!(
                namespace = self.namespace(),
                name = self.name_any(),
                problem,
                "Ignored a part of a ServiceProfile"
            );
        }
        facts
    }

    fn table(store: &mut Store) -> &mut Table<ProfileFacts> {
        &mut store.service_profiles
    }

    fn touch(_: &mut Store, _: &ObjectKey, _: &ProfileFacts, _: bool, dirty: &mut Dirty) {
        dirty.all_profiles();
    }
}

/// The facts of a profile, and what of it is ignored.
pub(crate) fn read(profile: &ServiceProfile) -> (ProfileFacts, Vec<String>) {
    let mut ignored = Vec::new();
    let spec = &profile.spec;
    let mut opaque_ports = PortSet::default();
    for text in &spec.opaque_ports {
        match text.parse::<PortSet>() {
            Ok(ports) => ports.iter().for_each(|port| opaque_ports.insert(port)),
            Err(error) => ignored.push(format!("opaquePorts: {error}")),
        }
    }
    let mut routes = Vec::new();
    for spec in &spec.routes {
        match route(spec) {
            Ok(route) => routes.push(route),
            Err(error) => ignored.push(format!("route `{}`: {error}", spec.name)),
        }
    }
    let mut overrides = Vec::new();
    for dst in &spec.dst_overrides {
        match millis(dst) {
            Some(weight) => overrides.push((dst.authority.trim_end_matches('.').to_owned(), weight)),
            None => ignored.push(format!(
                "dstOverrides: the weight of {} is no number such as 1 or 500m",
                dst.authority
            )),
        }
    }
    let budget = spec.retry_budget.as_ref().map(|budget| {
        let ttl = duration::parse_go(&budget.ttl);
        if let Err(error) = &ttl {
            ignored.push(format!("retryBudget.ttl: {error}"));
        }
        RetryBudget {
            ratio: budget.retry_ratio,
            min_per_second: budget.min_retries_per_second,
            ttl: ttl.unwrap_or(RetryBudget::default().ttl),
        }
    });
    let facts = ProfileFacts {
        routes,
        budget: budget.unwrap_or_default(),
        overrides,
        opaque_ports,
    };
    (facts, ignored)
}

fn route(spec: &RouteSpec) -> Result<ProfileRoute, String> {
    let timeout = match spec.timeout.as_deref() {
        None | Some("") => None,
        Some(text) => match duration::parse_go(text) {
            Ok(timeout) => Some(timeout),
            // Linkerd admits it, and no request can take less than no time.
            Err(GoDurationError::Negative(_)) => None,
            Err(error) => return Err(format!("timeout: {error}")),
        },
    };
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

/// A weight in thousandths, as Linkerd counts: `1`, `1000m` and `1.0` are the same.
fn millis(dst: &WeightedDst) -> Option<u32> {
    match &dst.weight {
        IntOrString::Int(number) => u32::try_from(*number).ok()?.checked_mul(1000),
        IntOrString::String(text) => quantity_millis(text),
    }
}

/// A Kubernetes quantity that is not negative, in thousandths.
fn quantity_millis(text: &str) -> Option<u32> {
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let factor = match unit {
        "" => 1e3,
        "m" => 1.0,
        "u" => 1e-3,
        "n" => 1e-6,
        "k" => 1e6,
        "M" => 1e9,
        "Ki" => 1024.0 * 1e3,
        "Mi" => 1024.0 * 1024.0 * 1e3,
        _ => return None,
    };
    let digits = number.strip_prefix('+').unwrap_or(number);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return None;
    }
    let millis = (digits.parse::<f64>().ok()? * factor).ceil();
    // Quantities are rounded up, and a share must fit what the proxy API carries.
    (millis <= f64::from(u32::MAX)).then_some(millis as u32)
}
