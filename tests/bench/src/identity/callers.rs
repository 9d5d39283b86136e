//! The proxies of a cluster, as the identity service sees them: each with a key, a token and a channel.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use heddle_mesh::{Identity, ServiceAccountRef, TrustDomain};
use heddle_tls::{CertifyKey, ClientAuth, ControlChannel, Store, TrustBundle, connect::ChannelOptions};
use linkerd2_proxy_api::identity::{CertifyRequest, identity_client::IdentityClient};
use tokio::{
    net::{TcpListener, TcpSocket},
    task::JoinSet,
    time::timeout,
};
use tonic::Code;

/// As many service accounts share the proxies.
const ACCOUNTS: usize = 200;
/// Connections of the arm that keeps them.
const KEPT: usize = 4;
/// What a proxy waits for an answer, and before it asks again.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
const RETRY_AFTER: Duration = Duration::from_millis(200);
const RESTART_DEADLINE: Duration = Duration::from_secs(120);

/// How a request gets its connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Connections {
    /// Some connections carry all requests.
    Kept,
    /// Each request has its own, with a TLS handshake, as proxies have.
    New,
}

pub(super) struct Callers {
    pub(super) addr: SocketAddr,
    server: Identity,
    /// Trusts the service; the callers themselves have no certificate yet.
    store: Store,
    requests: Arc<[CertifyRequest]>,
    next: Arc<AtomicUsize>,
}

/// How a restart went.
pub(super) struct Restart {
    pub(super) seconds: f64,
    pub(super) refused: usize,
    pub(super) attempts: usize,
}

impl Callers {
    pub(super) fn new(addr: SocketAddr, root_pem: &str, proxies: usize) -> Result<Self> {
        let name = |namespace: &str, name: String| {
            let account = ServiceAccountRef {
                namespace: namespace.to_owned(),
                name,
            };
            Identity::for_service_account(&account, "linkerd", &TrustDomain::default())
        };
        let server = name("linkerd", "linkerd-identity".to_owned())?;
        let (store, _) = Store::new(server.clone(), TrustBundle::from_pem(root_pem)?)?;
        let request = |pod: usize| -> Result<CertifyRequest> {
            let account = format!("web-{}", pod % ACCOUNTS);
            let identity = name("bench", account.clone())?;
            // A real token is a kilobyte long.
            let padding = "x".repeat(1000);
            Ok(CertifyRequest {
                identity: identity.to_string(),
                token: format!("bench.{account}.pod-{pod}-{padding}").into_bytes(),
                certificate_signing_request: CertifyKey::generate(&identity)?.csr_der().to_vec(),
            })
        };
        let requests = (0..proxies).map(request).collect::<Result<Vec<_>>>()?;
        Ok(Self {
            addr,
            server,
            store,
            requests: requests.into(),
            next: Arc::default(),
        })
    }

    fn client(&self) -> IdentityClient<ControlChannel> {
        self.client_at(self.addr)
    }

    fn client_at(&self, addr: SocketAddr) -> IdentityClient<ControlChannel> {
        let options = ChannelOptions {
            always_tls: true,
            ..ChannelOptions::default()
        };
        let (server, store) = (self.server.clone(), self.store.clone());
        IdentityClient::new(ControlChannel::with_options(
            addr.into(),
            server,
            store,
            ClientAuth::Anonymous,
            options,
        ))
    }

    /// Another proxy's request, round and round.
    fn next(&self) -> CertifyRequest {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        self.requests[next % self.requests.len()].clone()
    }

    /// `in_flight` requests at a time for so long; how many certificates came. Any refusal is an error.
    pub(super) async fn closed_loop(
        &self,
        connections: Connections,
        in_flight: usize,
        seconds: f64,
    ) -> Result<u64> {
        let until = Instant::now() + Duration::from_secs_f64(seconds);
        let kept: Vec<_> = (0..KEPT).map(|_| self.client()).collect();
        let loops = (0..in_flight).map(|index| {
            let kept = kept[index % KEPT].clone();
            async move {
                let mut certificates = 0;
                while Instant::now() < until {
                    let mut client = match connections {
                        Connections::Kept => kept.clone(),
                        Connections::New => self.client(),
                    };
                    client.certify(self.next()).await.context("refused")?;
                    certificates += 1;
                }
                anyhow::Ok(certificates)
            }
        });
        Ok(futures_util::future::try_join_all(loops).await?.into_iter().sum())
    }

    /// Requests on an absolute schedule; each one's latency in seconds, from when it was due.
    pub(super) async fn open_loop(&self, rate: f64, seconds: f64) -> Result<Vec<f64>> {
        let client = self.client();
        // The connection is made before the schedule begins.
        client.clone().certify(self.next()).await?;
        let began = tokio::time::Instant::now();
        let mut answers = JoinSet::new();
        for number in 0..(rate * seconds) as usize {
            let due = began + Duration::from_secs_f64(number as f64 / rate);
            tokio::time::sleep_until(due).await;
            let (mut client, request) = (client.clone(), self.next());
            answers.spawn(async move {
                client.certify(request).await.context("refused")?;
                anyhow::Ok(due.elapsed().as_secs_f64())
            });
        }
        answers.join_all().await.into_iter().collect()
    }

    /// Requests whose reviews hang, for as long as what is returned lives: as many from each of some addresses, since the
    /// service bounds what one address may have under review.
    pub(super) async fn hang(&self, addresses: u8, of_each: usize, round: usize) -> Result<JoinSet<()>> {
        let mut hung = JoinSet::new();
        for address in 0..addresses {
            let client = self.client_at(forward(address, self.addr, &mut hung).await?);
            for number in 0..of_each {
                let (mut client, mut request) = (client.clone(), self.next());
                request.token = format!("hang.{round}.{address}-{number}").into_bytes();
                hung.spawn(async move {
                    // The service gives up after a while; then the next one hangs.
                    loop {
                        let _ = client.certify(request.clone()).await;
                    }
                });
            }
        }
        Ok(hung)
    }

    /// All proxies start at once, each with a connection of its own, and ask until they have a certificate.
    pub(super) async fn restart(&self) -> Result<Restart> {
        let (refused, attempts) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let began = Instant::now();
        let mut starting = JoinSet::new();
        for request in self.requests.iter() {
            let (mut client, request) = (self.client(), request.clone());
            let (refused, attempts) = (Arc::clone(&refused), Arc::clone(&attempts));
            starting.spawn(async move {
                loop {
                    attempts.fetch_add(1, Ordering::Relaxed);
                    match timeout(REQUEST_TIMEOUT, client.certify(request.clone())).await {
                        Ok(Ok(_)) => return,
                        // A connection that was not made is no refusal; it is in the time.
                        Ok(Err(status)) if status.code() == Code::Unavailable => {}
                        Ok(Err(_)) | Err(_) => drop(refused.fetch_add(1, Ordering::Relaxed)),
                    }
                    tokio::time::sleep(RETRY_AFTER).await;
                }
            });
        }
        timeout(RESTART_DEADLINE, starting.join_all())
            .await
            .context("not all proxies were certified in time")?;
        Ok(Restart {
            seconds: began.elapsed().as_secs_f64(),
            refused: refused.load(Ordering::Relaxed),
            attempts: attempts.load(Ordering::Relaxed),
        })
    }
}

/// Carries connections to the service, which sees them come from another address of loopback.
async fn forward(address: u8, to: SocketAddr, tasks: &mut JoinSet<()>) -> Result<SocketAddr> {
    let source = SocketAddr::from(([127, 0, 1, address + 1], 0));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let here = listener.local_addr()?;
    tasks.spawn(async move {
        let mut carried = JoinSet::new();
        while let Ok((mut near, _)) = listener.accept().await {
            carried.spawn(async move {
                let socket = TcpSocket::new_v4()?;
                socket.bind(source)?;
                let mut far = socket.connect(to).await?;
                tokio::io::copy_bidirectional(&mut near, &mut far).await.map(drop)
            });
        }
    });
    Ok(here)
}
