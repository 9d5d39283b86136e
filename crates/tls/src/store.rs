//! The newest leaf and trust anchors of this process, and the rustls configurations that use them.
//!
//! A leaf is swapped inside the configurations, through their certificate resolvers. New anchors and new revocation lists
//! make new configurations, because rustls' verifiers hold theirs. Either way a connection that begins later uses the newest,
//! and reading a configuration costs a reference count.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use heddle_mesh::{Identity, PeerId};
use rustls::{
    ClientConfig, ServerConfig, SignatureScheme, SupportedProtocolVersion,
    client::{
        ResolvesClientCert, Resumption, VerifierBuilderError as ClientVerifierError,
        danger::ServerCertVerifier,
    },
    pki_types::UnixTime,
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert, VerifierBuilderError,
        danger::ClientCertVerifier,
    },
    sign::CertifiedKey,
};
use tokio::sync::watch;

use crate::{
    CertifyKey, LeafError, LocalCredentials, PeerLeaf, Revocations, TrustBundle, leaf::KeyError, provider,
    verify,
};

static VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// Credentials that are swapped while in use. Cheap to clone; clones share everything.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: Identity,
    leaf: Arc<Leaf>,
    configs: ArcSwap<Configs>,
    ready: watch::Sender<Readiness>,
    roots_changed: watch::Sender<u64>,
    /// Empty until lists are set; then never again.
    revocations: watch::Sender<Revocations>,
    /// Configurations are made from what is here already, by one at a time.
    changing: Mutex<()>,
}

/// All that depends on the trust anchors and the revocation lists.
#[derive(Debug)]
struct Configs {
    roots: TrustBundle,
    revocations: Revocations,
    clients: Arc<dyn ClientCertVerifier>,
    servers: Arc<verify::Servers>,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    anonymous: Arc<ClientConfig>,
}

/// The resolver inside all configurations.
#[derive(Debug)]
struct Leaf {
    certified: ArcSwapOption<CertifiedKey>,
    credentials: ArcSwapOption<LocalCredentials>,
}

/// Whether this process can prove its identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// There was no leaf yet.
    Pending,
    /// There is a leaf until this time.
    Ready {
        /// When the leaf ends to be valid.
        expires: SystemTime,
    },
}

/// A store could not be made.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// rustls does not take the trust anchors for servers' certificates.
    #[error("failed to make a verifier of servers' certificates")]
    ServerVerifier(#[source] ClientVerifierError),
    /// rustls does not take the trust anchors for clients' certificates.
    #[error("failed to make a verifier of clients' certificates")]
    ClientVerifier(#[source] VerifierBuilderError),
    /// rustls does not take the provider.
    #[error("failed to configure TLS")]
    Config(#[source] rustls::Error),
}

/// Why revocation lists were not taken; the old ones stay.
#[derive(Debug, thiserror::Error)]
pub enum RevocationRefused {
    /// They are not the issuer's: by them even our own leaf, which they do not revoke, would be refused.
    #[error("by them this process' own certificate could not be judged")]
    Unsound(#[source] rustls::Error),
    /// rustls refuses them.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Readiness {
    /// Whether there is a leaf and it is still valid.
    pub fn is_ready(&self) -> bool {
        match self {
            Self::Pending => false,
            Self::Ready { expires } => *expires > SystemTime::now(),
        }
    }
}

impl Store {
    /// A store without a leaf, and a first key to have one certified for.
    ///
    /// # Errors
    /// No key can be made, or rustls refuses the anchors.
    pub fn new(name: Identity, roots: TrustBundle) -> Result<(Self, CertifyKey), StoreError> {
        let key = CertifyKey::generate(&name)?;
        let leaf = Arc::new(Leaf {
            certified: ArcSwapOption::empty(),
            credentials: ArcSwapOption::empty(),
        });
        let configs = ArcSwap::from_pointee(Configs::new(roots, Revocations::default(), &leaf)?);
        let (ready, _) = watch::channel(Readiness::Pending);
        let (roots_changed, _) = watch::channel(0);
        let (revocations, _) = watch::channel(Revocations::default());
        Ok((
            Self(Arc::new(Inner {
                name,
                leaf,
                configs,
                ready,
                roots_changed,
                revocations,
                changing: Mutex::new(()),
            })),
            key,
        ))
    }

    /// This process' identity.
    pub fn name(&self) -> &Identity {
        &self.0.name
    }

    /// Takes a new leaf. Connections that exist keep the one they began with.
    ///
    /// # Errors
    /// The leaf is for another name, or does not lead to the trust anchors now: what peers would refuse is not shown.
    pub fn set_leaf(&self, credentials: LocalCredentials) -> Result<(), LeafError> {
        if *credentials.name() != self.0.name {
            let found = Some(credentials.name().clone());
            return Err(LeafError::Name {
                expected: self.0.name.clone(),
                found,
            });
        }
        credentials.verify(&self.0.configs.load().roots, SystemTime::now())?;
        let expires = credentials.expires();
        self.0.leaf.certified.store(Some(credentials.certified()));
        self.0.leaf.credentials.store(Some(Arc::new(credentials)));
        self.0.ready.send_replace(Readiness::Ready { expires });
        Ok(())
    }

    /// Takes new trust anchors, for connections that begin from now on. Equal ones change nothing.
    ///
    /// # Errors
    /// rustls refuses them; the old ones stay.
    pub fn set_roots(&self, roots: TrustBundle) -> Result<bool, StoreError> {
        let _changing = self.changing();
        let configs = self.0.configs.load();
        if configs.roots == roots {
            return Ok(false);
        }
        let revocations = configs.revocations.clone();
        self.0
            .configs
            .store(Arc::new(Configs::new(roots, revocations, &self.0.leaf)?));
        self.0.roots_changed.send_modify(|generation| *generation += 1);
        Ok(true)
    }

    /// Takes new revocation lists, for handshakes that begin from now on and for [`Store::until_revoked`]. Lists of
    /// other issuers stay until they are over. Returns whether anything changed.
    ///
    /// # Errors
    /// They are not what an issuer of this mesh signed, as far as this process' own leaf can tell.
    pub fn set_revocations(&self, revocations: Revocations) -> Result<bool, RevocationRefused> {
        let _changing = self.changing();
        let configs = self.0.configs.load();
        let revocations = revocations.and_older(&configs.revocations, SystemTime::now());
        if configs.revocations == revocations {
            return Ok(false);
        }
        let new = Configs::new(configs.roots.clone(), revocations.clone(), &self.0.leaf)?;
        if let Some(leaf) = self.credentials() {
            new.judge(&leaf).map_err(RevocationRefused::Unsound)?;
        }
        self.0.configs.store(Arc::new(new));
        self.0.revocations.send_replace(revocations);
        Ok(true)
    }

    /// The newest revocation lists, empty before the first.
    pub fn revocations(&self) -> watch::Receiver<Revocations> {
        self.0.revocations.subscribe()
    }

    /// Returns when `leaf` is revoked, which may be never. For connections that live: a handshake judges only once.
    pub async fn until_revoked(&self, leaf: Option<PeerLeaf>) {
        if let Some(leaf) = leaf {
            let revoked = |lists: &Revocations| lists.revokes(&leaf);
            if self.revocations().wait_for(revoked).await.is_ok() {
                return;
            }
        }
        std::future::pending().await
    }

    /// A panic leaves nothing half changed, so a poisoned lock is as good as another.
    fn changing(&self) -> MutexGuard<'_, ()> {
        self.0
            .changing
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The newest trust anchors.
    pub fn roots(&self) -> TrustBundle {
        self.0.configs.load().roots.clone()
    }

    /// Counts the changes of the trust anchors. Whoever derives configurations of their own (say, with ALPN) makes
    /// them anew when this changes.
    pub fn roots_generation(&self) -> watch::Receiver<u64> {
        self.0.roots_changed.subscribe()
    }

    /// The newest leaf.
    pub fn credentials(&self) -> Option<Arc<LocalCredentials>> {
        self.0.leaf.credentials.load_full()
    }

    /// Whether there is a leaf, and until when.
    pub fn ready(&self) -> watch::Receiver<Readiness> {
        self.0.ready.subscribe()
    }

    /// For accepting connections: shows the newest leaf (without one, handshakes fail), asks for a client certificate,
    /// and takes clients that have none; one that has a bad one is refused. Costs a reference count.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.configs.load().server)
    }

    /// For making connections: the server's chain must lead to the anchors and its names must hold the server name;
    /// shows the newest leaf when asked, if there is one. Costs a reference count.
    pub fn client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.0.configs.load().client)
    }

    /// As [`Store::client_config`], but the server must be `id`, whatever name it is asked for.
    pub fn client_config_for(&self, id: PeerId) -> ClientConfig {
        let configs = self.0.configs.load();
        let mut config = ClientConfig::clone(&configs.client);
        config
            .dangerous()
            .set_certificate_verifier(verify::named(&configs.servers, id));
        config
    }

    /// As [`Store::client_config`], but never shows a leaf: for the connection that obtains one.
    pub fn anonymous_client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.0.configs.load().anonymous)
    }

    /// How long the leaf is still valid; zero without one.
    pub fn remaining(&self) -> Duration {
        match *self.0.ready.borrow() {
            Readiness::Pending => Duration::ZERO,
            Readiness::Ready { expires } => expires.duration_since(SystemTime::now()).unwrap_or_default(),
        }
    }
}

impl Configs {
    fn new(roots: TrustBundle, revocations: Revocations, leaf: &Arc<Leaf>) -> Result<Self, StoreError> {
        let clients = verify::clients(&roots, &revocations).map_err(StoreError::ClientVerifier)?;
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)
            .map_err(StoreError::Config)?
            .with_client_cert_verifier(Arc::clone(&clients))
            .with_cert_resolver(Arc::clone(leaf) as Arc<dyn ResolvesServerCert>);
        // A resumed session would outlive the verification of its peer's certificate.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;

        let servers = verify::servers(&roots, &revocations).map_err(StoreError::ServerVerifier)?;
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)
            .map_err(StoreError::Config)?
            // Not less than rustls' own: ours asks it first.
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&servers) as Arc<dyn ServerCertVerifier>);
        let mut client = builder
            .clone()
            .with_client_cert_resolver(Arc::clone(leaf) as Arc<dyn ResolvesClientCert>);
        client.resumption = Resumption::disabled();
        let mut anonymous = builder.with_no_client_auth();
        anonymous.resumption = Resumption::disabled();
        Ok(Self {
            roots,
            revocations,
            clients,
            servers,
            server: Arc::new(server),
            client: Arc::new(client),
            anonymous: Arc::new(anonymous),
        })
    }

    /// Whether these judge our own leaf as peers will. That it is revoked or over says nothing against the lists.
    fn judge(&self, leaf: &LocalCredentials) -> Result<(), rustls::Error> {
        use rustls::CertificateError::{Expired, ExpiredContext, Revoked};
        let Some((first, rest)) = leaf.chain().split_first() else {
            return Ok(());
        };
        match self.clients.verify_client_cert(first, rest, UnixTime::now()) {
            Ok(_) => Ok(()),
            Err(rustls::Error::InvalidCertificate(Revoked | Expired | ExpiredContext { .. })) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl ResolvesServerCert for Leaf {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certified.load_full()
    }
}

impl ResolvesClientCert for Leaf {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.certified.load_full()
    }

    fn has_certs(&self) -> bool {
        self.certified.load().is_some()
    }
}
