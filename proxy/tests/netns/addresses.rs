//! Which addresses the proxy takes connections at: the pod's own, as it is told, and no others that are routed to it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::{
    apps::{serve_http, serve_http_with, try_get},
    can_run,
    control::Script,
    eventually,
    net::{Namespace, Network},
    pod::{Options, Pod},
    policies::server_for_everyone,
};

/// Listens on every address of the pod.
const OPEN: u16 = 8080;
/// Listens on loopback alone: for the pod alone.
const PRIVATE: u16 = 8082;

/// A pod with both applications, and the way of a stranger to it by an address that is not the pod's.
fn start(network: &Network, script: &Script, env: Vec<(&'static str, String)>) -> (Pod, Namespace, IpAddr) {
    let pod = Pod::start_with(network, script, "server", Options { env });
    serve_http(&pod.namespace, OPEN, "open");
    serve_http_with(
        &pod.namespace,
        (Ipv4Addr::LOCALHOST, PRIVATE).into(),
        "private",
        None,
    );
    let stranger = network.namespace();
    let foreign = IpAddr::from([192, 0, 2, 1]);
    stranger.route(foreign, &pod.namespace);
    (pod, stranger, foreign)
}

/// What a stranger hears at this address.
fn ask(stranger: &Namespace, addr: impl Into<SocketAddr>) -> Option<String> {
    let addr = addr.into();
    let reply = stranger.block_on(move || async move { try_get(addr, "/").await.ok() })?;
    (reply.status == 200).then_some(reply.body)
}

#[test]
fn a_connection_for_another_address_goes_nowhere() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (pod, stranger, foreign) = start(&network, &script, Vec::new());
    assert_eq!(ask(&stranger, pod.addr(OPEN)).as_deref(), Some("open"));
    for port in [OPEN, PRIVATE] {
        assert_eq!(ask(&stranger, (foreign, port)), None, "port {port} at {foreign}");
    }
    assert_eq!(
        ask(&stranger, pod.addr(PRIVATE)),
        None,
        "what listens on loopback is the pod's alone"
    );
    let refused = [("error", "target address")];
    assert_eq!(pod.metric("inbound_tcp_errors_total", &refused), Some(2.0));

    // A policy names addresses, too.
    let mut elsewhere = server_for_everyone();
    elsewhere.server_ips = vec![foreign.into()];
    script.set_inbound("server", OPEN, elsewhere);
    eventually(
        "nothing is taken at an address that the policy does not name",
        || ask(&stranger, pod.addr(OPEN)).is_none().then_some(()),
    );
    let mut here = server_for_everyone();
    here.server_ips = vec![IpAddr::from(pod.namespace.ip).into()];
    script.set_inbound("server", OPEN, here);
    eventually("it is taken at one that it names", || {
        ask(&stranger, pod.addr(OPEN))
    });
}

#[test]
fn a_machine_that_is_told_no_addresses_takes_those_that_it_has() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (pod, stranger, foreign) = start(&network, &script, vec![("INBOUND_IPS", String::new())]);
    assert_eq!(ask(&stranger, pod.addr(OPEN)).as_deref(), Some("open"));
    for addr in [
        (foreign, OPEN),
        (foreign, PRIVATE),
        (pod.namespace.ip.into(), PRIVATE),
    ] {
        assert_eq!(ask(&stranger, addr), None, "{addr:?}");
    }
}
