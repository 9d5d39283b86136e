use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex},
};

use hickory_resolver::{
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    proto::{
        op::{Message, ResponseCode},
        rr::{Name, Record, rdata},
    },
};
use tokio::{net::UdpSocket, task::JoinHandle};

use super::*;

const SERVICE: &str = "linkerd-dst-headless.linkerd.svc.cluster.local.";

/// A DNS server with a few records, which remembers what it was asked.
struct Dns {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(records: Vec<Record>) -> Dns {
    let mut zone: BTreeMap<(String, RecordType), Vec<Record>> = BTreeMap::new();
    for record in records {
        zone.entry((record.name.to_string(), record.record_type()))
            .or_default()
            .push(record);
    }
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    let port = socket.local_addr().expect("has an address").port();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    let task = tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            let (length, peer) = socket.recv_from(&mut buffer).await.expect("receives");
            let request = Message::from_vec(&buffer[..length]).expect("a query");
            let query = request.queries[0].clone();
            let name = query.name().to_ascii().to_ascii_lowercase();
            log.lock()
                .expect("no one panics")
                .push(format!("{name} {}", query.query_type()));
            let mut reply = Message::response(request.metadata.id, request.metadata.op_code);
            reply.metadata.recursion_available = true;
            reply.metadata.authoritative = true;
            reply.add_query(query.clone());
            match zone.get(&(name.clone(), query.query_type())) {
                Some(records) => drop(reply.add_answers(records.iter().cloned())),
                None if zone.keys().any(|(known, _)| *known == name) => {}
                None => reply.metadata.response_code = ResponseCode::NXDomain,
            }
            socket
                .send_to(&reply.to_vec().expect("encodes"), peer)
                .await
                .expect("sends");
        }
    });
    Dns { port, asked, task }
}

impl Dns {
    fn resolver(&self) -> Resolver {
        let mut udp = ConnectionConfig::udp();
        udp.port = self.port;
        let server = NameServerConfig::new(IpAddr::V4(Ipv4Addr::LOCALHOST), true, vec![udp]);
        let search = [
            "payments.svc.cluster.local.",
            "svc.cluster.local.",
            "cluster.local.",
        ];
        let search = search
            .map(|name| Name::from_ascii(name).expect("a name"))
            .to_vec();
        let config = ResolverConfig::from_parts(None, search, vec![server]);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        builder.options_mut().ndots = 5;
        let resolver = Resolver::default();
        resolver
            .0
            .set(build(builder).expect("builds"))
            .unwrap_or_else(|_| panic!("set once"));
        resolver
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no one panics").clone()
    }
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

fn srv(target: &str, port: u16) -> Record {
    Record::from_rdata(
        name(SERVICE),
        5,
        RData::SRV(rdata::SRV::new(0, 50, port, name(target))),
    )
}

fn a(host: &str, ip: [u8; 4]) -> Record {
    Record::from_rdata(name(host), 5, RData::A(Ipv4Addr::from(ip).into()))
}

fn pod(ip: [u8; 4]) -> String {
    let [a, b, c, d] = ip;
    format!("{a}-{b}-{c}-{d}.{SERVICE}")
}

async fn resolve(dns: &Dns, addr: &str) -> Result<Vec<String>, ResolveError> {
    let found = dns.resolver().resolve(&addr.parse().expect("an address")).await?;
    let mut found: Vec<_> = found.iter().map(ToString::to_string).collect();
    found.sort();
    Ok(found)
}

#[tokio::test]
async fn a_headless_service_gives_the_addresses_of_its_pods() {
    let (one, two) = ([10, 244, 0, 5], [10, 244, 1, 6]);
    let dns = serve(vec![
        srv(&pod(one), 8086),
        srv(&pod(two), 8086),
        srv(&pod(two), 9996),
        a(&pod(one), one),
        a(&pod(two), two),
    ])
    .await;
    for addr in [
        &format!("{SERVICE}:8086"),
        "linkerd-dst-headless.linkerd.svc.cluster.local:8086",
    ] {
        assert_eq!(
            resolve(&dns, addr).await.expect("found"),
            ["10.244.0.5:8086", "10.244.1.6:8086"]
        );
    }
    // The search domains of the pod were never tried.
    let asked = dns.asked();
    assert!(
        asked.iter().all(|query| query
            .split(' ')
            .next()
            .is_some_and(|name| name.ends_with(SERVICE))),
        "{asked:?}"
    );
}

#[tokio::test]
async fn without_srv_records_the_addresses_of_the_name_are_taken() {
    let dns = serve(vec![a(SERVICE, [10, 96, 0, 7])]).await;
    assert_eq!(
        resolve(&dns, &format!("{SERVICE}:8086")).await.expect("found"),
        ["10.96.0.7:8086"]
    );
    // Records for other ports do not count.
    let dns = serve(vec![srv(&pod([10, 244, 0, 5]), 1), a(SERVICE, [10, 96, 0, 7])]).await;
    assert_eq!(
        resolve(&dns, &format!("{SERVICE}:8086")).await.expect("found"),
        ["10.96.0.7:8086"]
    );
}

#[tokio::test]
async fn a_name_that_nobody_knows_is_an_error_that_names_it() {
    let dns = serve(vec![a("other.", [10, 0, 0, 1])]).await;
    let error = resolve(&dns, &format!("{SERVICE}:8086"))
        .await
        .expect_err("unknown");
    assert!(error.to_string().contains(SERVICE), "{error}");
}

#[tokio::test]
async fn an_address_needs_no_dns() {
    let found = Resolver::default()
        .resolve(&"10.1.2.3:80".parse().expect("an address"))
        .await
        .expect("itself");
    assert_eq!(found, ["10.1.2.3:80".parse().expect("an address")]);
}
