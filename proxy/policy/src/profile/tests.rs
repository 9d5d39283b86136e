use http::Request;
use linkerd2_proxy_api::http_types;

use super::*;
use crate::{
    ClientPolicy,
    outbound::{Distribution, OpaqueVerdict, Protocol},
};

fn path(regex: &str) -> proto::RequestMatch {
    proto::RequestMatch {
        r#match: Some(proto::request_match::Match::Path(proto::PathMatch {
            regex: regex.into(),
        })),
    }
}

fn method(name: &str) -> proto::RequestMatch {
    let method: http_types::HttpMethod = name.parse::<Method>().expect("a method").into();
    proto::RequestMatch {
        r#match: Some(proto::request_match::Match::Method(method)),
    }
}

fn all(matches: Vec<proto::RequestMatch>) -> proto::RequestMatch {
    let seq = proto::request_match::Seq { matches };
    proto::RequestMatch {
        r#match: Some(proto::request_match::Match::All(seq)),
    }
}

fn not(one: proto::RequestMatch) -> proto::RequestMatch {
    proto::RequestMatch {
        r#match: Some(proto::request_match::Match::Not(Box::new(one))),
    }
}

fn status(min: u32, max: u32) -> proto::ResponseMatch {
    proto::ResponseMatch {
        r#match: Some(proto::response_match::Match::Status(proto::HttpStatusRange {
            min,
            max,
        })),
    }
}

fn route(name: &str, condition: proto::RequestMatch) -> proto::Route {
    proto::Route {
        condition: Some(condition),
        metrics_labels: [("route".to_owned(), name.to_owned())].into(),
        ..Default::default()
    }
}

fn profile(routes: Vec<proto::Route>) -> proto::DestinationProfile {
    proto::DestinationProfile {
        fully_qualified_name: "web.test.svc.cluster.local".into(),
        routes,
        retry_budget: Some(proto::RetryBudget {
            retry_ratio: 0.2,
            min_retries_per_second: 10,
            ttl: Some(prost_types::Duration {
                seconds: 10,
                nanos: 0,
            }),
        }),
        ..Default::default()
    }
}

fn under(profile: proto::DestinationProfile) -> ClientPolicy {
    let profile = Profile::try_from(profile).expect("valid");
    let addr = ([10, 0, 0, 1], 80).into();
    let none = Profile::default();
    let policy = Arc::new(ClientPolicy::synthesize(
        Some(addr),
        80,
        &none,
        Duration::from_secs(1),
    ));
    ClientPolicy::clone(&policy.under(&profile, 80))
}

#[test]
fn the_first_route_that_fits_holds() {
    let policy = under(profile(vec![
        route("books", all(vec![method("GET"), path("/books/\\d+")])),
        route("read", not(method("POST"))),
        route("post", path("/books/.*")),
    ]));
    let Protocol::Detect { http1, .. } = &policy.protocol else {
        panic!("detected");
    };
    let taken = |method: &str, path: &str| {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .body(())
            .expect("valid");
        let (_, rule) = crate::route::find(&http1.routes, &request).expect("the last rule takes all");
        let profile = rule.policy.profile.as_ref().expect("of a profile");
        assert_eq!(profile.service, "web.test.svc.cluster.local:80");
        profile.labels.first().map(|(_, name)| name.clone())
    };
    assert_eq!(taken("GET", "/books/1").as_deref(), Some("books"));
    assert_eq!(taken("GET", "//books/1").as_deref(), Some("books"));
    assert_eq!(
        taken("GET", "/books/1/x").as_deref(),
        Some("read"),
        "the whole path"
    );
    assert_eq!(taken("POST", "/books/1").as_deref(), Some("post"));
    assert_eq!(taken("POST", "/").as_deref(), None, "the default route");
}

#[test]
fn classes_say_what_fails_and_grpc_statuses_come_first() {
    let mut one = route("x", path(".*"));
    one.response_classes = vec![
        proto::ResponseClass {
            condition: Some(status(404, 0)),
            is_failure: true,
        },
        proto::ResponseClass {
            condition: Some(status(500, 599)),
            is_failure: false,
        },
    ];
    let read = Profile::try_from(profile(vec![one])).expect("valid");
    let route = RouteProfile {
        service: String::new(),
        labels: Vec::new(),
        classes: read.routes[0].classes.clone(),
    };
    let fails = |status: u16, grpc| route.is_failure(StatusCode::from_u16(status).expect("a status"), grpc);
    assert!(fails(404, None) && !fails(503, None) && !fails(200, None));
    assert!(fails(200, Some(14)) && !fails(404, Some(0)) && !fails(200, Some(3)));
}

#[test]
fn targets_take_the_services_place_and_opaque_ports_have_no_routes() {
    let mut split = profile(Vec::new());
    split.dst_overrides = vec![
        proto::WeightedDst {
            authority: "a.test.svc.cluster.local:80".into(),
            weight: 1,
            backend_ref: None,
        },
        proto::WeightedDst {
            authority: "b.test.svc.cluster.local:80".into(),
            weight: 3,
            backend_ref: None,
        },
    ];
    let policy = under(split.clone());
    let Protocol::Detect { http2, opaque, .. } = &policy.protocol else {
        panic!("detected");
    };
    let backends = |distribution: &Distribution| match distribution {
        Distribution::Split(backends, weights) => (backends.len(), weights.total()),
        _ => panic!("by weight"),
    };
    assert_eq!(backends(&http2.routes[0].rules[0].policy.distribution), (2, 4));
    assert!(matches!(&opaque.verdict, OpaqueVerdict::To(to) if backends(to) == (2, 4)));
    let opaque = under(proto::DestinationProfile {
        opaque_protocol: true,
        routes: vec![route("x", path(".*"))],
        ..split
    });
    assert!(matches!(&opaque.protocol, Protocol::Opaque(_)));
}

#[test]
fn a_profile_is_taken_whole_or_not_at_all() {
    assert!(Profile::try_from(profile(vec![route("x", path("("))])).is_err());
    assert!(Profile::try_from(profile(vec![proto::Route::default()])).is_err());
    let mut budget = profile(Vec::new());
    budget.retry_budget = Some(proto::RetryBudget::default());
    assert!(Profile::try_from(budget).is_err());
    let none = profile(Vec::new());
    assert!(!Profile::try_from(none).expect("valid").has_routes_or_targets());
}
