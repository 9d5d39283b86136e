//! Clients make up the values of some labels. What they make up stays bounded.

use http::{Request, header};
use http_body_util::Full;
use linkerd2_proxy_api::{
    http_route::RequestRedirect,
    outbound::http_route::{Filter, filter},
};

use crate::{
    apps::Http1,
    can_run,
    control::Script,
    http_traffic::service,
    net::Network,
    pod::{Options, Pod, labels},
    policies::{http_rule, outbound_detect},
};

/// Series of one family.
const SERIES_MAX: usize = 5_000;
const CLIENTS: usize = 8;
const HOSTS: usize = 6_000;

#[test]
fn hosts_that_a_client_makes_up_share_a_series_beyond_the_bound() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    // The proxy answers by itself: what counts is how it counts.
    let mut rule = http_rule("web");
    rule.filters = vec![Filter {
        kind: Some(filter::Kind::Redirect(RequestRedirect::default())),
    }];
    script.set_outbound(service(), outbound_detect("web", rule));
    let options = Options {
        env: vec![("OUTBOUND_METRICS_HOSTNAME_LABELS", "true".to_owned())],
    };
    let client = Pod::start_with(&network, &script, "client", options);
    let ask = async |connection: &mut Http1, host: usize| {
        let request = Request::get("/").header(header::HOST, format!("host-{host}.test"));
        let request = request.body(Full::default()).expect("valid");
        assert_eq!(connection.send(request).await.expect("a reply").status, 301);
    };
    client.namespace.block_on(move || async move {
        let each = |first: usize| async move {
            let mut connection = Http1::connect(service()).await.expect("connects");
            for host in (first..HOSTS).step_by(CLIENTS) {
                ask(&mut connection, host).await;
            }
        };
        futures_util::future::join_all((0..CLIENTS).map(each)).await;
    });

    let overflow = labels([("overflow", "true")]);
    let (beyond, requests) = ((HOSTS - SERIES_MAX) as f64, HOSTS as f64);
    for name in [
        "outbound_http_route_request_statuses_total",
        "outbound_http_route_request_duration_seconds_count",
    ] {
        let series = client.series(name);
        assert_eq!(series.len(), SERIES_MAX + 1, "{name}");
        assert_eq!(series.get(&overflow), Some(&beyond), "{name}");
        assert_eq!(series.values().sum::<f64>(), requests, "{name}: each is counted");
    }
    // Those that have a place keep it, and others have theirs.
    let name = "outbound_http_route_request_statuses_total";
    let known = client.series(name).into_keys().find(|labels| *labels != overflow);
    let known = known.expect("5,000 of them");
    let host: usize = known["hostname"]
        .trim_start_matches("host-")
        .trim_end_matches(".test")
        .parse()
        .expect("a host of ours");
    client.namespace.block_on(move || async move {
        ask(&mut Http1::connect(service()).await.expect("connects"), host).await;
    });
    assert_eq!(client.series(name).get(&known), Some(&2.0));
    assert!(client.metric("tcp_open_total", &[("peer", "src")]).is_some());
}
