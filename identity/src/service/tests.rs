use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use heddle_tls::{CertifyKey, Store, TrustBundle};
use prometheus_client::registry::Registry;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use super::*;
use crate::{
    event::{self, Event, Queue},
    limit::{IDENTITY_PER_MINUTE, POD_PER_MINUTE},
    token::BoundPod,
    turn::FAST_MAX,
};

/// Knows tokens by heart, as the Kubernetes API would.
struct Tokens {
    accounts: BTreeMap<&'static str, (&'static str, &'static str)>,
    reviews: Arc<AtomicUsize>,
}

impl Authenticate for Tokens {
    async fn authenticate(&self, token: &Token) -> Result<Account, TokenError> {
        self.reviews.fetch_add(1, Ordering::Relaxed);
        match token.secret() {
            "hangs" => std::future::pending().await,
            "fails" => Err(TokenError::Timeout),
            "elsewhere" => Err(TokenError::Audience),
            // `ACCOUNT/POD` is the token of a pod.
            secret => {
                let (account, pod) = secret
                    .split_once('/')
                    .map_or((secret, None), |(a, pod)| (a, Some(pod)));
                let (namespace, name) = self
                    .accounts
                    .get(account)
                    .ok_or(TokenError::Refused { reason: None })?;
                let account = ServiceAccountRef {
                    namespace: (*namespace).into(),
                    name: (*name).into(),
                };
                Ok(Account {
                    account,
                    uid: None,
                    pod: pod.map(|name| BoundPod {
                        name: name.into(),
                        uid: format!("uid-of-{name}"),
                    }),
                })
            }
        }
    }
}

struct Fixture {
    service: Arc<Service<Tokens>>,
    issuer: Arc<ArcSwapOption<Issuer>>,
    roots: TrustBundle,
    reviews: Arc<AtomicUsize>,
    queue: Queue,
    registry: Registry,
}

fn mk_issuer() -> (Issuer, TrustBundle) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a root");
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("tls.crt"), ca.pem()).expect("writes");
    std::fs::write(dir.path().join("tls.key"), ca.key().serialize_pem()).expect("writes");
    (
        Issuer::load(dir.path()).expect("loads"),
        TrustBundle::from_pem(&ca.pem()).expect("a bundle"),
    )
}

fn fixture() -> Fixture {
    let (issuer, roots) = mk_issuer();
    let issuer = Arc::new(ArcSwapOption::from_pointee(issuer));
    let (store, _) = Store::new(name("linkerd-identity", "linkerd"), roots.clone()).expect("a store");
    let (events, queue) = event::queue();
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry, Arc::clone(&issuer), store, &events);
    let settings = Settings {
        control_namespace: "linkerd".into(),
        trust_domain: TrustDomain::default(),
        validity: Validity {
            lifetime: Duration::from_secs(3600),
            clock_skew: Duration::from_secs(20),
        },
        spiffe: false,
        rates: Rates {
            pod: POD_PER_MINUTE,
            identity: IDENTITY_PER_MINUTE,
        },
    };
    let reviews = Arc::new(AtomicUsize::new(0));
    let accounts = BTreeMap::from([
        ("web-token", ("payments", "web")),
        ("odd-token", ("payments", "-")),
    ]);
    let tokens = Tokens {
        accounts,
        reviews: Arc::clone(&reviews),
    };
    let service = Arc::new(Service::new(
        settings,
        Arc::clone(&issuer),
        tokens,
        metrics,
        events,
    ));
    Fixture {
        service,
        issuer,
        roots,
        reviews,
        queue,
        registry,
    }
}

fn name(account: &str, namespace: &str) -> Identity {
    format!("{account}.{namespace}.serviceaccount.identity.linkerd.cluster.local")
        .parse()
        .expect("a name")
}

fn request(identity: &Identity, token: &str) -> (CertifyKey, CertifyRequest) {
    let key = CertifyKey::generate(identity).expect("a key");
    let request = CertifyRequest {
        identity: identity.to_string(),
        token: token.as_bytes().to_vec(),
        certificate_signing_request: key.csr_der().to_vec(),
    };
    (key, request)
}

impl Fixture {
    async fn certify(&self, request: CertifyRequest) -> Result<CertifyResponse, Status> {
        self.service
            .certify(Request::new(request))
            .await
            .map(Response::into_inner)
    }

    async fn refusal(&self, request: CertifyRequest) -> (Code, String) {
        let status = self.certify(request).await.expect_err("must be refused");
        (status.code(), status.message().to_owned())
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).expect("encodes");
        text
    }
}

#[tokio::test]
async fn a_service_account_gets_its_leaf_an_event_and_a_count() {
    let mut fixture = fixture();
    let (key, request) = request(&name("web", "payments"), "web-token");
    let response = fixture.certify(request).await.expect("issued");
    let leaf = heddle_tls::LocalCredentials::new(&key, vec![response.leaf_certificate.into()]).expect("ours");
    leaf.verify(&fixture.roots, SystemTime::now())
        .expect("leads to the root");
    let until = SystemTime::try_from(response.valid_until.expect("there")).expect("a time");
    assert!(until.duration_since(leaf.expires()).unwrap_or_default() < Duration::from_secs(1));

    let Event {
        reason,
        subject,
        note,
    } = fixture.queue.try_next().expect("an event");
    assert_eq!(reason, Reason::IssuedLeafCertificate);
    assert!(matches!(subject, Subject::Account(Account { account, .. }) if account.name == "web"));
    assert!(note.contains("web.payments.serviceaccount"), "{note}");
    assert!(
        note.contains(", serial ") && note.contains(", pod none"),
        "{note}"
    );
    let metrics = fixture.metrics();
    assert!(
        metrics.contains(r#"identity_certify_requests_total{result="issued"} 1"#),
        "{metrics}"
    );
    for gauge in ["\nissuer_cert_ttl_seconds ", "\ntrust_anchors_cert_ttl_seconds "] {
        assert!(metrics.contains(gauge), "{metrics}");
    }
}

#[tokio::test]
async fn malformed_requests_are_refused_before_any_review() {
    let fixture = fixture();
    let web = name("web", "payments");
    let (_, good) = request(&web, "web-token");
    let cases = [
        CertifyRequest {
            identity: String::new(),
            ..good.clone()
        },
        CertifyRequest {
            identity: "a b\n".into(),
            ..good.clone()
        },
        CertifyRequest {
            token: Vec::new(),
            ..good.clone()
        },
        CertifyRequest {
            token: vec![0xff; 8],
            ..good.clone()
        },
        CertifyRequest {
            certificate_signing_request: Vec::new(),
            ..good.clone()
        },
        CertifyRequest {
            certificate_signing_request: vec![0; 100],
            ..good.clone()
        },
        CertifyRequest {
            certificate_signing_request: vec![0; 100_000],
            ..good.clone()
        },
    ];
    for case in cases {
        let (code, message) = fixture.refusal(case).await;
        assert_eq!(code, Code::InvalidArgument, "{message}");
    }
    let (_, other) = request(&name("db", "payments"), "web-token");
    let mixed = CertifyRequest {
        identity: web.to_string(),
        ..other
    };
    assert_eq!(fixture.refusal(mixed).await.0, Code::FailedPrecondition);
    assert_eq!(fixture.reviews.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_token_buys_its_own_identity_only() {
    let fixture = fixture();
    for stolen in [
        name("db", "payments"),
        name("web", "default"),
        name("linkerd-identity", "linkerd"),
    ] {
        let (code, message) = fixture.refusal(request(&stolen, "web-token").1).await;
        assert_eq!(code, Code::FailedPrecondition);
        assert!(message.contains("the token is web.payments."), "{message}");
    }
    let elsewhere: Identity = "web.payments.serviceaccount.identity.linkerd.example.org"
        .parse()
        .expect("a name");
    assert_eq!(
        fixture.refusal(request(&elsewhere, "web-token").1).await.0,
        Code::FailedPrecondition
    );
    assert_eq!(
        fixture
            .refusal(request(&name("web", "payments"), "odd-token").1)
            .await
            .0,
        Code::FailedPrecondition
    );
    let metrics = fixture.metrics();
    assert!(
        metrics.contains(r#"identity_certify_requests_total{result="wrong_identity"} 5"#),
        "{metrics}"
    );
}

#[tokio::test]
async fn reviews_that_refuse_or_fail_have_linkerds_codes() {
    let fixture = fixture();
    let web = name("web", "payments");
    for (token, expected) in [
        ("unknown", Code::FailedPrecondition),
        ("elsewhere", Code::FailedPrecondition),
        ("fails", Code::Unavailable),
    ] {
        let (code, message) = fixture.refusal(request(&web, token).1).await;
        assert_eq!(code, expected, "{message}");
        assert!(!message.contains(token), "the token is told: {message}");
    }
}

#[tokio::test]
async fn without_an_issuer_it_is_unavailable() {
    let fixture = fixture();
    fixture.issuer.store(None);
    assert_eq!(
        fixture
            .refusal(request(&name("web", "payments"), "web-token").1)
            .await
            .0,
        Code::Unavailable
    );
}

#[tokio::test(start_paused = true)]
async fn hung_reviews_delay_nobody_else_and_do_not_stop_a_new_issuer() {
    let fixture = fixture();
    let web = name("web", "payments");
    let mut hung = tokio::task::JoinSet::new();
    for _ in 0..FAST_MAX {
        let (service, request) = (Arc::clone(&fixture.service), request(&web, "hangs").1);
        hung.spawn(async move { service.certify(Request::new(request)).await });
    }
    while fixture.reviews.load(Ordering::Relaxed) < FAST_MAX {
        tokio::task::yield_now().await;
    }
    // No review holds the issuer, and none its place for long.
    fixture.issuer.store(Some(Arc::new(mk_issuer().0)));
    let began = Instant::now();
    fixture
        .certify(request(&web, "web-token").1)
        .await
        .expect("there is room");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    hung.abort_all();
    while hung.join_next().await.is_some() {}
}

#[tokio::test(start_paused = true)]
async fn a_pod_in_a_loop_is_told_to_wait_and_the_api_is_spared() {
    let fixture = fixture();
    let web = name("web", "payments");
    let burst = POD_PER_MINUTE.get() as usize;
    for _ in 0..burst {
        fixture
            .certify(request(&web, "web-token/web-1").1)
            .await
            .expect("within the share");
    }
    let (code, message) = fixture.refusal(request(&web, "web-token/web-1").1).await;
    assert_eq!(code, Code::ResourceExhausted);
    assert!(
        message.contains("at most 20 a minute, try again in 3 s"),
        "{message}"
    );
    assert_eq!(
        fixture.reviews.load(Ordering::Relaxed),
        burst,
        "the API was asked"
    );
    fixture
        .certify(request(&web, "web-token/web-2").1)
        .await
        .expect("another pod is not concerned");
    tokio::time::advance(Duration::from_secs(3)).await;
    fixture
        .certify(request(&web, "web-token/web-1").1)
        .await
        .expect("its rate allows one more");
    let metrics = fixture.metrics();
    assert!(
        metrics.contains(r#"identity_certify_requests_total{result="rate_limited"} 1"#),
        "{metrics}"
    );
}
