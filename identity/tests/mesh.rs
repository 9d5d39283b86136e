//! The identity service and its clients in one process, over real sockets and real TLS: certify, mutual TLS between two
//! clients, renewal, a new issuer and a new root while all of it runs.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use heddle_identity::{
    event::{self, Queue},
    issuer::Validity,
    limit::{IDENTITY_PER_MINUTE, POD_PER_MINUTE, Rates},
    lists::{ListKeeper, ListService},
    metrics::Metrics,
    own::Own,
    served::Served,
    service::{Service, Settings},
    token::{Account, Authenticate, Token, TokenError},
    watch::Keeper,
};
use heddle_mesh::{Identity, ServiceAccountRef, TrustDomain};
use heddle_tls::{
    CertMetrics, CertifyLoop, PeerLeaf, Store, TrustBundle,
    connect::ChannelOptions,
    peer_identity, peer_spiffe_id,
    revocation::fetch::RevocationLoop,
    roots::RootsFile,
    serve::{self, Server},
};
use prometheus_client::registry::Registry;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};
use x509_parser::prelude::{FromDer, X509Certificate};

const DEADLINE: Duration = Duration::from_secs(30);

type Ca = CertifiedIssuer<'static, KeyPair>;

/// A token is `NAMESPACE/NAME`.
struct Tokens;

impl Authenticate for Tokens {
    async fn authenticate(&self, token: &Token) -> Result<Account, TokenError> {
        let (namespace, name) = token
            .secret()
            .split_once('/')
            .ok_or(TokenError::Refused { reason: None })?;
        let account = ServiceAccountRef {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        Ok(Account {
            account,
            uid: None,
            pod: None,
        })
    }
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

fn mk_root(name: &str) -> Ca {
    Ca::self_signed(ca_params(name), KeyPair::generate().expect("a key")).expect("a root")
}

fn mk_issuer(root: &Ca) -> Ca {
    Ca::signed_by(ca_params("issuer"), KeyPair::generate().expect("a key"), root).expect("an issuer")
}

fn identity(namespace: &str, name: &str) -> Identity {
    let account = ServiceAccountRef {
        namespace: namespace.into(),
        name: name.into(),
    };
    Identity::for_service_account(&account, "linkerd", &TrustDomain::default()).expect("a name")
}

/// A running identity service with its mounted files.
struct Mesh {
    dir: tempfile::TempDir,
    addr: SocketAddr,
    tasks: JoinSet<()>,
    drain: Option<drain::Signal>,
    _queue: Queue,
}

impl Mesh {
    async fn start(root: &Ca, lifetime: Duration) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(dir.path().join("issuer")).expect("makes a folder");
        std::fs::create_dir(dir.path().join("roots")).expect("makes a folder");
        let (drain, watch) = drain::channel();
        let (events, queue) = event::queue();
        let listener = serve::bind(SocketAddr::from(([127, 0, 0, 1], 0)))
            .await
            .expect("binds");
        let addr = listener.local_addr().expect("has an address");
        let mut mesh = Self {
            dir,
            addr,
            tasks: JoinSet::new(),
            drain: Some(drain),
            _queue: queue,
        };
        mesh.put_roots(&[root]);
        mesh.put_issuer(&mk_issuer(root));

        let validity = Validity {
            lifetime,
            clock_skew: Duration::from_secs(20),
        };
        let bundle = TrustBundle::from_pem(&root.pem()).expect("a bundle");
        let (store, key) = Store::new(identity("linkerd", "linkerd-identity"), bundle).expect("a store");
        let issuer = Arc::new(ArcSwapOption::empty());
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry, Arc::clone(&issuer), store.clone(), &events);
        let own = Own::new(store.clone(), key, validity, CertMetrics::default());
        let keeper = Keeper::new(
            mesh.dir.path().join("issuer"),
            mesh.roots(),
            own,
            Arc::clone(&issuer),
            events.clone(),
        );
        mesh.tasks.spawn(keeper.run(lifetime));
        let settings = Settings {
            control_namespace: "linkerd".into(),
            trust_domain: TrustDomain::default(),
            validity,
            spiffe: true,
            rates: Rates {
                pod: POD_PER_MINUTE,
                identity: IDENTITY_PER_MINUTE,
            },
        };
        mesh.put_revoked("");
        let revoked = Arc::new(ArcSwap::default());
        let lists = ListKeeper::new(
            mesh.dir.path().join("revoked"),
            (lifetime.min(Duration::from_secs(4)), validity.clock_skew),
            Arc::clone(&issuer),
            Arc::clone(&revoked),
            events.clone(),
        );
        let list_service = ListService::new(lists.published());
        mesh.tasks.spawn(lists.run());
        let service = Service::new(settings, issuer, Tokens, metrics, events).revoked(revoked);
        let served = Served::new(service.into_server(), Some(list_service));
        mesh.tasks.spawn(
            Server::only(served)
                .short_answers()
                .serve_tls(listener, store, watch),
        );
        mesh
    }

    fn roots(&self) -> PathBuf {
        self.dir.path().join("roots/ca-bundle.crt")
    }

    fn put_roots(&self, roots: &[&Ca]) {
        let text: String = roots.iter().map(|root| root.pem()).collect();
        let new = self.dir.path().join("roots/new");
        std::fs::write(&new, text).expect("writes");
        std::fs::rename(new, self.roots()).expect("renames");
    }

    fn put_revoked(&self, text: &str) {
        let new = self.dir.path().join("revoked.new");
        std::fs::write(&new, text).expect("writes");
        std::fs::rename(new, self.dir.path().join("revoked")).expect("renames");
    }

    fn follow_revocations(&mut self, store: &Store) {
        let options = ChannelOptions {
            always_tls: true,
            ..ChannelOptions::default()
        };
        let server = identity("linkerd", "linkerd-identity");
        let follow = RevocationLoop::with_options(store.clone(), self.addr.into(), server, options)
            .poll_interval(Duration::from_millis(50));
        self.tasks.spawn(follow.run());
    }

    fn put_issuer(&self, ca: &Ca) {
        let issuer = self.dir.path().join("issuer");
        std::fs::write(issuer.join("tls.key"), ca.key().serialize_pem()).expect("writes");
        std::fs::write(issuer.join("tls.crt"), ca.pem()).expect("writes");
    }

    /// A workload: its store, kept certified, following the mounted roots.
    fn workload(&mut self, namespace: &str, name: &str, token: &str) -> Store {
        let token_file = self.dir.path().join(format!("token-{namespace}-{name}"));
        std::fs::write(&token_file, token).expect("writes");
        let bundle = heddle_tls::roots::load(&self.roots()).expect("a bundle");
        let (store, key) = Store::new(identity(namespace, name), bundle).expect("a store");
        let options = ChannelOptions {
            always_tls: true,
            ..ChannelOptions::default()
        };
        let server = identity("linkerd", "linkerd-identity");
        let certify =
            CertifyLoop::with_options(store.clone(), key, self.addr.into(), server, token_file, options)
                .refresh_bounds(Duration::from_millis(200), Duration::from_secs(3600));
        self.tasks.spawn(certify.run());
        let roots = RootsFile::new(self.roots()).poll_interval(Duration::from_millis(50));
        self.tasks.spawn(roots.run(store.clone()));
        store
    }

    async fn stop(mut self) {
        if let Some(drain) = self.drain.take() {
            timeout(DEADLINE, drain.drain()).await.expect("drains in time");
        }
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
    }
}

async fn certified(store: &Store) {
    let mut ready = store.ready();
    timeout(DEADLINE, ready.wait_for(|ready| ready.is_ready()))
        .await
        .expect("in time")
        .expect("the store lives");
}

/// Waits until `check` holds; the leaf's changes are what it waits for.
async fn until(store: &Store, check: impl Fn(&Store) -> bool) {
    let mut ready = store.ready();
    let reached = async {
        while !check(store) {
            ready.changed().await.expect("the store lives");
        }
    };
    timeout(DEADLINE, reached).await.expect("in time");
}

/// How a client whose certificate the server refuses learns of it.
async fn refused(server: &Store, client: &Store) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("has an address");
    let acceptor = tokio_rustls_acceptor(server);
    let accept = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("accepts");
        acceptor
            .accept(stream)
            .await
            .map(drop)
            .expect_err("must be refused")
    });
    let name = ServerName::try_from(server.name().as_str().to_owned()).expect("a server name");
    let stream = TcpStream::connect(addr).await.expect("connects");
    // In TLS 1.3 a client is done before its certificate is judged, so it may or may not hear of it here.
    let connector = tokio_rustls::TlsConnector::from(client.client_config());
    let _ = connector.connect(name, stream).await;
    format!("{:?}", accept.await.expect("the server ends"))
}

/// One mutual TLS connection; returns whom the server and the client see.
async fn connect(server: &Store, client: &Store) -> (Option<Identity>, Option<Identity>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("has an address");
    let acceptor = tokio_rustls_acceptor(server);
    let accept = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("accepts");
        let mut stream = acceptor.accept(stream).await.expect("the server's handshake");
        let mut byte = [0];
        stream.read_exact(&mut byte).await.expect("reads");
        stream.write_all(&byte).await.expect("writes");
        stream.get_ref().1.peer_certificates().and_then(peer_identity)
    });
    let name = ServerName::try_from(server.name().as_str().to_owned()).expect("a server name");
    let stream = TcpStream::connect(addr).await.expect("connects");
    let connector = tokio_rustls::TlsConnector::from(client.client_config());
    let mut stream = connector
        .connect(name, stream)
        .await
        .expect("the client's handshake");
    stream.write_all(&[7]).await.expect("writes");
    let mut byte = [0];
    stream.read_exact(&mut byte).await.expect("reads");
    let seen = stream.get_ref().1.peer_certificates().and_then(peer_identity);
    (accept.await.expect("the server ends"), seen)
}

fn tokio_rustls_acceptor(server: &Store) -> tokio_rustls::TlsAcceptor {
    tokio_rustls::TlsAcceptor::from(server.server_config())
}

#[tokio::test]
async fn two_workloads_are_certified_and_know_each_other() {
    let root = mk_root("root");
    let mut mesh = Mesh::start(&root, Duration::from_secs(24 * 3600)).await;
    let web = mesh.workload("payments", "web", "payments/web");
    let db = mesh.workload("payments", "db", "payments/db");
    certified(&web).await;
    certified(&db).await;
    let (client, server) = connect(&db, &web).await;
    assert_eq!(
        (client, server),
        (Some(web.name().clone()), Some(db.name().clone()))
    );
    let leaf = web.credentials().expect("a leaf");
    let spiffe = peer_spiffe_id(leaf.chain()).expect("a SPIFFE ID");
    assert_eq!(spiffe.as_str(), "spiffe://cluster.local/ns/payments/sa/web");
    let life = web.remaining();
    assert!(
        life > Duration::from_secs(86_000) && life <= Duration::from_secs(86_400),
        "{life:?}"
    );
    mesh.stop().await;
}

#[tokio::test]
async fn what_is_revoked_is_refused_and_cut_off() {
    let root = mk_root("root");
    let mut mesh = Mesh::start(&root, Duration::from_secs(24 * 3600)).await;
    let web = mesh.workload("payments", "web", "payments/web");
    let db = mesh.workload("payments", "db", "payments/db");
    certified(&web).await;
    certified(&db).await;
    for store in [&web, &db] {
        mesh.follow_revocations(store);
        let mut lists = store.revocations();
        let listed = lists.wait_for(|lists| !lists.is_empty());
        timeout(DEADLINE, listed).await.expect("in time").expect("lives");
    }
    connect(&db, &web).await;
    let peer = |store: &Store| PeerLeaf::of(store.credentials().expect("a leaf").chain());
    let (web_leaf, db_leaf) = (peer(&web), peer(&db));

    // By serial number: the connection that lives ends, and no new one begins.
    let serial = {
        let credentials = web.credentials().expect("a leaf");
        let (_, cert) = X509Certificate::from_der(&credentials.chain()[0]).expect("parses");
        cert.raw_serial_as_string()
    };
    mesh.put_revoked(&format!("# stolen\nserial {serial}\n"));
    timeout(DEADLINE, db.until_revoked(web_leaf))
        .await
        .expect("in time");
    let error = refused(&db, &web).await;
    assert!(error.contains("Revoked"), "{error}");

    // A slip in the file makes nothing good again; an identity takes all its leaves with it.
    mesh.put_revoked("serial what?\n");
    mesh.put_revoked(&format!("serial {serial}\nidentity {}\n", db.name()));
    timeout(DEADLINE, web.until_revoked(db_leaf))
        .await
        .expect("in time");
    let error = refused(&web, &db).await;
    assert!(error.contains("Revoked"), "{error}");
    let barred = mesh.workload("payments", "db", "payments/db");
    let honest = mesh.workload("payments", "cache", "payments/cache");
    certified(&honest).await;
    assert!(
        !barred.ready().borrow().is_ready(),
        "a revoked identity got a certificate"
    );

    // Taken off the list, it is good again.
    mesh.put_revoked("");
    certified(&barred).await;
    let mut lists = web.revocations();
    let leaf = peer(&barred).expect("a leaf");
    let clear = lists.wait_for(|lists| !lists.revokes(&leaf));
    timeout(DEADLINE, clear).await.expect("in time").expect("lives");
    connect(&web, &barred).await;
    mesh.stop().await;
}

#[tokio::test]
async fn a_token_of_another_account_buys_nothing() {
    let root = mk_root("root");
    let mut mesh = Mesh::start(&root, Duration::from_secs(24 * 3600)).await;
    let thief = mesh.workload("linkerd", "linkerd-destination", "payments/web");
    let honest = mesh.workload("payments", "web", "payments/web");
    certified(&honest).await;
    assert!(!thief.ready().borrow().is_ready());
    mesh.stop().await;
}

#[tokio::test]
async fn a_token_that_is_replaced_is_read_again() {
    let root = mk_root("root");
    let mut mesh = Mesh::start(&root, Duration::from_secs(24 * 3600)).await;
    let web = mesh.workload("payments", "web", "expired");
    let honest = mesh.workload("payments", "db", "payments/db");
    certified(&honest).await;
    assert!(!web.ready().borrow().is_ready());
    std::fs::write(mesh.dir.path().join("token-payments-web"), "payments/web\n").expect("writes");
    certified(&web).await;
    mesh.stop().await;
}

#[tokio::test]
async fn leaves_are_renewed_before_they_end() {
    let root = mk_root("root");
    let mut mesh = Mesh::start(&root, Duration::from_secs(10)).await;
    let web = mesh.workload("payments", "web", "payments/web");
    certified(&web).await;
    let first = web.credentials().expect("a leaf").chain()[0].clone();
    let expires = web.credentials().expect("a leaf").expires();
    until(&web, |store| {
        store.credentials().is_some_and(|leaf| leaf.chain()[0] != first)
    })
    .await;
    assert!(SystemTime::now() < expires, "renewed too late");
    mesh.stop().await;
}

#[tokio::test]
async fn issuer_and_root_rotate_while_everything_runs() {
    let (old, new) = (mk_root("old"), mk_root("new"));
    let mut mesh = Mesh::start(&old, Duration::from_secs(24 * 3600)).await;
    let web = mesh.workload("payments", "web", "payments/web");
    let db = mesh.workload("payments", "db", "payments/db");
    certified(&web).await;
    certified(&db).await;

    // Trust both, then issue from the new root, then forget the old one: leaves follow by themselves.
    mesh.put_roots(&[&old, &new]);
    let mut roots = web.roots_generation();
    timeout(DEADLINE, roots.wait_for(|generation| *generation == 1))
        .await
        .expect("in time")
        .expect("lives");
    let mut roots = db.roots_generation();
    timeout(DEADLINE, roots.wait_for(|generation| *generation == 1))
        .await
        .expect("in time")
        .expect("lives");
    connect(&db, &web).await;
    let issuer = mk_issuer(&new);
    mesh.put_issuer(&issuer);
    mesh.put_roots(&[&new]);
    let of_new = |store: &Store| {
        store
            .credentials()
            .is_some_and(|leaf| leaf.chain()[1] == *issuer.der())
    };
    until(&web, of_new).await;
    until(&db, of_new).await;
    let (client, server) = connect(&web, &db).await;
    assert_eq!(
        (client, server),
        (Some(db.name().clone()), Some(web.name().clone()))
    );
    assert_eq!(web.roots().certs(), [new.der().clone()]);
    mesh.stop().await;
}
