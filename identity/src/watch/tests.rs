use std::os::unix::fs::symlink;

use heddle_mesh::Identity;
use heddle_tls::{CertMetrics, Store, TrustBundle};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use super::*;
use crate::{
    event::{self, Event, Queue},
    issuer::Validity,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const OWN: &str = "linkerd-identity.linkerd.serviceaccount.identity.linkerd.cluster.local";

type Ca = CertifiedIssuer<'static, KeyPair>;

fn params(name: &str, expires: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_before = (SystemTime::now() - DAY).into();
    params.not_after = expires.into();
    params
}

fn mk_root(name: &str) -> Ca {
    Ca::self_signed(
        params(name, SystemTime::now() + 30 * DAY),
        KeyPair::generate().expect("a key"),
    )
    .expect("a root")
}

fn mk_issuer(root: &Ca, expires: SystemTime) -> Ca {
    Ca::signed_by(
        params("issuer", expires),
        KeyPair::generate().expect("a key"),
        root,
    )
    .expect("an issuer")
}

/// A mounted volume as the kubelet makes it: files are links into `..data`, which is a link to a dated folder.
struct Volume {
    dir: tempfile::TempDir,
    version: u32,
}

impl Volume {
    fn new(files: &[(&str, &str)]) -> Self {
        let mut volume = Self {
            dir: tempfile::tempdir().expect("a folder"),
            version: 0,
        };
        volume.swap(files);
        for (name, _) in files {
            symlink(Path::new("..data").join(name), volume.dir.path().join(name)).expect("links");
        }
        volume
    }

    fn swap(&mut self, files: &[(&str, &str)]) {
        self.version += 1;
        let version = format!("..version_{}", self.version);
        std::fs::create_dir(self.dir.path().join(&version)).expect("makes a folder");
        for (name, text) in files {
            std::fs::write(self.dir.path().join(&version).join(name), text).expect("writes");
        }
        symlink(&version, self.dir.path().join("..data_tmp")).expect("links");
        std::fs::rename(self.dir.path().join("..data_tmp"), self.dir.path().join("..data")).expect("renames");
    }
}

struct Fixture {
    root: Ca,
    issuer: Volume,
    roots: Volume,
    keeper: Keeper,
    store: Store,
    current: Arc<ArcSwapOption<Issuer>>,
    queue: Queue,
}

fn fixture() -> Fixture {
    fixture_with(Duration::from_secs(20))
}

fn fixture_with(clock_skew: Duration) -> Fixture {
    let root = mk_root("root");
    let ca = mk_issuer(&root, SystemTime::now() + 10 * DAY);
    let issuer = Volume::new(&[("tls.crt", &ca.pem()), ("tls.key", &ca.key().serialize_pem())]);
    let roots = Volume::new(&[("ca-bundle.crt", &root.pem())]);
    let name: Identity = OWN.parse().expect("a name");
    let bundle = TrustBundle::from_pem(&root.pem()).expect("a bundle");
    let (store, key) = Store::new(name, bundle).expect("a store");
    let validity = Validity {
        lifetime: DAY,
        clock_skew,
    };
    let own = Own::new(store.clone(), key, validity, CertMetrics::default());
    let current = Arc::new(ArcSwapOption::empty());
    let (events, queue) = event::queue();
    let roots_path = roots.dir.path().join("ca-bundle.crt");
    let keeper = Keeper::new(issuer.dir.path(), roots_path, own, Arc::clone(&current), events);
    Fixture {
        root,
        issuer,
        roots,
        keeper,
        store,
        current,
        queue,
    }
}

impl Fixture {
    fn put_issuer(&mut self, ca: &Ca) {
        self.issuer
            .swap(&[("tls.crt", &ca.pem()), ("tls.key", &ca.key().serialize_pem())]);
    }

    fn refresh(&mut self) -> IssuerChange {
        self.keeper.refresh(SystemTime::now())
    }

    fn reasons(&mut self) -> Vec<Reason> {
        std::iter::from_fn(|| self.queue.try_next())
            .map(|Event { reason, .. }| reason)
            .collect()
    }

    fn leaf(&self) -> Option<Vec<u8>> {
        self.store.credentials().map(|leaf| leaf.chain()[0].to_vec())
    }
}

#[test]
fn the_first_issuer_makes_the_service_ready() {
    let mut fixture = fixture();
    assert!(!fixture.store.ready().borrow().is_ready());
    assert!(matches!(fixture.refresh(), IssuerChange::Updated));
    assert!(fixture.store.ready().borrow().is_ready());
    assert_eq!(fixture.reasons(), [Reason::IssuerUpdated]);
    assert!(matches!(fixture.refresh(), IssuerChange::Unchanged));
    assert_eq!(fixture.reasons(), []);
}

#[test]
fn a_good_new_issuer_is_taken_and_signs_our_own_leaf() {
    let mut fixture = fixture();
    fixture.refresh();
    let old = fixture.leaf();
    let ca = mk_issuer(&fixture.root, SystemTime::now() + 5 * DAY);
    fixture.put_issuer(&ca);
    assert!(matches!(fixture.refresh(), IssuerChange::Updated));
    assert_ne!(fixture.leaf(), old);
    let chain = fixture.store.credentials().expect("a leaf").chain().to_vec();
    assert_eq!(chain[1], *ca.der());
    assert_eq!(fixture.reasons(), [Reason::IssuerUpdated; 2]);
}

#[test]
fn a_bad_new_issuer_keeps_the_old_one_and_is_told_once() {
    let mut fixture = fixture();
    fixture.refresh();
    fixture.reasons();
    let old = fixture.current.load_full().expect("an issuer");
    let stranger = mk_issuer(&mk_root("stranger"), SystemTime::now() + DAY);
    let expired = mk_issuer(&fixture.root, SystemTime::now() - Duration::from_secs(60));
    for bad in [stranger, expired] {
        fixture.put_issuer(&bad);
        assert!(matches!(fixture.refresh(), IssuerChange::Invalid(_)));
        assert!(matches!(fixture.refresh(), IssuerChange::Invalid(_)));
        assert_eq!(fixture.reasons(), [Reason::IssuerValidationFailed]);
    }
    let (one, two) = (mk_issuer(&fixture.root, SystemTime::now() + DAY), mk_root("two"));
    fixture
        .issuer
        .swap(&[("tls.crt", &one.pem()), ("tls.key", &two.key().serialize_pem())]);
    assert!(matches!(
        fixture.refresh(),
        IssuerChange::Skipped(LoadError::KeyMismatch { .. })
    ));
    assert_eq!(fixture.reasons(), [Reason::IssuerUpdateSkipped]);
    fixture.issuer.swap(&[("tls.crt", "garbage"), ("tls.key", "")]);
    assert!(matches!(
        fixture.refresh(),
        IssuerChange::Skipped(LoadError::Pem { .. })
    ));
    fixture.issuer.swap(&[]);
    assert!(matches!(
        fixture.refresh(),
        IssuerChange::Skipped(LoadError::NotFound(_))
    ));
    assert_eq!(fixture.reasons(), [Reason::IssuerUpdateSkipped; 2]);
    assert!(Arc::ptr_eq(
        &old,
        &fixture.current.load_full().expect("an issuer")
    ));

    // And the next good one is taken.
    fixture.put_issuer(&one);
    assert!(matches!(fixture.refresh(), IssuerChange::Updated));
    assert_eq!(fixture.reasons(), [Reason::IssuerUpdated]);
}

#[test]
fn a_root_is_rotated_without_a_restart() {
    let mut fixture = fixture();
    fixture.refresh();
    // The issuer of the new root comes first: it waits until the bundle has that root.
    let new_root = mk_root("new root");
    let ca = mk_issuer(&new_root, SystemTime::now() + 5 * DAY);
    fixture.put_issuer(&ca);
    assert!(matches!(fixture.refresh(), IssuerChange::Invalid(_)));
    let both = format!("{}{}", fixture.root.pem(), new_root.pem());
    fixture.roots.swap(&[("ca-bundle.crt", &both)]);
    assert!(matches!(fixture.refresh(), IssuerChange::Updated));
    assert_eq!(fixture.store.roots().certs().len(), 2);
    // A broken bundle changes nothing, the bundle without the old root does.
    fixture.roots.swap(&[("ca-bundle.crt", "")]);
    assert!(matches!(fixture.refresh(), IssuerChange::Unchanged));
    assert_eq!(fixture.store.roots().certs().len(), 2);
    fixture.roots.swap(&[("ca-bundle.crt", &new_root.pem())]);
    assert!(matches!(fixture.refresh(), IssuerChange::Unchanged));
    let leaf = fixture.store.credentials().expect("a leaf");
    leaf.verify(&fixture.store.roots(), SystemTime::now())
        .expect("the leaf leads to the new root alone");
}

#[test]
fn our_own_leaf_is_renewed_in_time() {
    // The store goes by the real clock, so leaves of the times below must be valid already.
    let mut fixture = fixture_with(DAY);
    fixture.refresh();
    let first = fixture.leaf();
    fixture.keeper.refresh(SystemTime::now() + DAY / 2);
    assert_eq!(fixture.leaf(), first);
    fixture.keeper.refresh(SystemTime::now() + DAY.mul_f64(0.71));
    assert_ne!(fixture.leaf(), first);
}

#[tokio::test]
async fn a_swapped_volume_is_seen_at_once() {
    let Fixture {
        root,
        mut issuer,
        roots: _roots,
        keeper,
        store,
        ..
    } = fixture();
    let mut ready = store.ready();
    let running = tokio::spawn(keeper.run(DAY));
    let deadline = Duration::from_secs(20);
    tokio::time::timeout(deadline, ready.changed())
        .await
        .expect("in time")
        .expect("the first leaf");
    let ca = mk_issuer(&root, SystemTime::now() + 5 * DAY);
    issuer.swap(&[("tls.crt", &ca.pem()), ("tls.key", &ca.key().serialize_pem())]);
    // Sooner than the timer.
    tokio::time::timeout(deadline, ready.changed())
        .await
        .expect("in time")
        .expect("the second leaf");
    assert_eq!(store.credentials().expect("a leaf").chain()[1], *ca.der());
    running.abort();
}
