//! Routes of connections, by server name or without looking, as messages.

use heddle_control_core::outbound::{Backend, Distribution, OpaqueRoute, TlsRoute};
use linkerd2_proxy_api::{opaque_route as filters, outbound as proto, tls_route as sni};

use super::{Filter, backend, encode};
use heddle_control_core::route::HostMatch;

const FORBIDDEN: filters::Forbidden = filters::Forbidden {};

/// Why a backend cannot be connected to.
fn invalid(target: &Backend) -> Option<filters::Invalid> {
    target.filters.iter().find_map(|filter| match filter {
        Filter::Fail { message, .. } => Some(filters::Invalid {
            message: message.clone(),
        }),
        _ => None,
    })
}

macro_rules! rule {
    ($function:ident, $module:ident) => {
        fn $function(backends: &Distribution, forbidden: bool) -> proto::$module::Rule {
            use proto::$module::{
                Distribution as Proto, Filter, RouteBackend, Rule, WeightedRouteBackend, distribution,
                filter::Kind,
            };
            let filter = |kind| Filter { kind: Some(kind) };
            let one = |target: &Backend| RouteBackend {
                backend: Some(backend(target)),
                filters: invalid(target)
                    .map(Kind::Invalid)
                    .map(filter)
                    .into_iter()
                    .collect(),
            };
            let kind = match backends {
                Distribution::First(target) => {
                    distribution::Kind::FirstAvailable(distribution::FirstAvailable {
                        backends: vec![one(target)],
                    })
                }
                Distribution::Weighted(targets) => {
                    let weighted = |(target, weight): &(Backend, u32)| WeightedRouteBackend {
                        backend: Some(one(target)),
                        weight: *weight,
                    };
                    distribution::Kind::RandomAvailable(distribution::RandomAvailable {
                        backends: targets.iter().map(weighted).collect(),
                    })
                }
            };
            Rule {
                backends: Some(Proto { kind: Some(kind) }),
                filters: forbidden
                    .then(|| filter(Kind::Forbidden(FORBIDDEN)))
                    .into_iter()
                    .collect(),
            }
        }
    };
}

rule!(opaque_rule, opaque_route);
rule!(tls_rule, tls_route);

pub(super) fn opaque(route: &OpaqueRoute) -> proto::OpaqueRoute {
    let OpaqueRoute {
        meta,
        backends,
        forbidden,
    } = route;
    proto::OpaqueRoute {
        metadata: Some(encode::metadata(meta)),
        rules: vec![opaque_rule(backends, *forbidden)],
    }
}

pub(super) fn tls(route: &TlsRoute) -> proto::TlsRoute {
    let TlsRoute {
        snis,
        route: OpaqueRoute {
            meta,
            backends,
            forbidden,
        },
    } = route;
    proto::TlsRoute {
        metadata: Some(encode::metadata(meta)),
        snis: snis.iter().map(server_name).collect(),
        rules: vec![tls_rule(backends, *forbidden)],
    }
}

fn server_name(name: &HostMatch) -> sni::SniMatch {
    use sni::sni_match::{Match, Suffix};
    let kind = match name {
        HostMatch::Exact(name) => Match::Exact(name.clone()),
        HostMatch::Suffix(labels) => Match::Suffix(Suffix {
            reverse_labels: labels.clone(),
        }),
    };
    sni::SniMatch { r#match: Some(kind) }
}
