//! Workload identities: `SA.NS.serviceaccount.identity.CONTROL-NS.TRUST-DOMAIN`, a DNS name that stands in a
//! certificate's subject alternative names.
//!
//! An identity is compared byte by byte after being lower-cased once, at the edge; DNS names are case-insensitive
//! (RFC 4343) and certificates may carry either.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A DNS name that a workload proves with its certificate. Lower case, at most 253 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Identity(String);

/// The DNS suffix under which all identities of one mesh are issued, such as `cluster.local`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(String);

/// A workload's name in SPIFFE's form: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId(String);

/// What a workload proves with its certificate: a DNS name in all of Linkerd's meshes, a SPIFFE ID where an authority
/// of another kind (SPIRE, say) gives the certificates.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PeerId {
    /// A DNS name.
    Dns(Identity),
    /// A SPIFFE ID, and no DNS name.
    Spiffe(SpiffeId),
}

/// A Kubernetes service account.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServiceAccountRef {
    /// The namespace that holds the account.
    pub namespace: String,
    /// The account's name.
    pub name: String,
}

/// Why a text is no identity, trust domain or service account.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The name is empty or longer than DNS allows.
    #[error("`{0}` is not a DNS name: it must have 1 to 253 characters")]
    Length(String),
    /// One of the labels breaks the rules of RFC 1123 names.
    #[error(
        "`{name}` is not a DNS name: label `{label}` must have 1 to 63 of a-z, 0-9, `-` or `_`, and not begin or end with `-`"
    )]
    Label {
        /// The whole name.
        name: String,
        /// The label at fault.
        label: String,
    },
    /// A token's user name that is not a service account's.
    #[error("`{0}` is not a service account: expected `system:serviceaccount:NAMESPACE:NAME`")]
    NotServiceAccount(String),
    /// A text that is no SPIFFE ID.
    #[error("`{0}` is not a SPIFFE ID: expected `spiffe://TRUST-DOMAIN/PATH`")]
    NotSpiffe(String),
}

impl Identity {
    /// The identity of a service account: `name.namespace.serviceaccount.identity.control_namespace.trust_domain`.
    pub fn for_service_account(
        account: &ServiceAccountRef,
        control_namespace: &str,
        trust_domain: &TrustDomain,
    ) -> Result<Self, IdentityError> {
        format!(
            "{}.{}.serviceaccount.identity.{control_namespace}.{trust_domain}",
            account.name, account.namespace
        )
        .parse()
    }

    /// The name as text, lower case, without a trailing dot.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The inverse of [`Identity::for_service_account`]: nobody else has this identity in that mesh.
    pub fn account_in(
        &self,
        control_namespace: &str,
        trust_domain: &TrustDomain,
    ) -> Option<ServiceAccountRef> {
        let suffix = format!(".serviceaccount.identity.{control_namespace}.{trust_domain}");
        let (name, namespace) = self.0.strip_suffix(&suffix)?.rsplit_once('.')?;
        Some(ServiceAccountRef {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }

    /// The service account this identity stands for, when it has the form of a workload's identity.
    ///
    /// Service-account names may themselves contain dots, so the namespace is what precedes `serviceaccount`.
    pub fn service_account(&self) -> Option<ServiceAccountRef> {
        let (front, _) = self.0.split_once(".serviceaccount.identity.")?;
        let (name, namespace) = front.rsplit_once('.')?;
        Some(ServiceAccountRef {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }
}

impl SpiffeId {
    /// The SPIFFE ID of a service account.
    pub fn for_service_account(account: &ServiceAccountRef, trust_domain: &TrustDomain) -> Self {
        let ServiceAccountRef { namespace, name } = account;
        Self(format!("spiffe://{trust_domain}/ns/{namespace}/sa/{name}"))
    }

    /// The ID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The service account, when the path has the form that Kubernetes meshes write.
    pub fn service_account(&self) -> Option<ServiceAccountRef> {
        let (_, path) = self.0.strip_prefix("spiffe://")?.split_once('/')?;
        let (namespace, name) = path.strip_prefix("ns/")?.split_once("/sa/")?;
        let plain = |text: &str| !text.is_empty() && !text.contains('/');
        (plain(namespace) && plain(name)).then(|| ServiceAccountRef {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }
}

impl PeerId {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Dns(name) => name.as_str(),
            Self::Spiffe(id) => id.as_str(),
        }
    }

    /// The DNS name, if it is one.
    pub fn dns(&self) -> Option<&Identity> {
        match self {
            Self::Dns(name) => Some(name),
            Self::Spiffe(_) => None,
        }
    }
}

impl ServiceAccountRef {
    /// Reads the user name that a TokenReview gives for a service account.
    ///
    /// # Errors
    /// Any text but `system:serviceaccount:NAMESPACE:NAME`.
    pub fn from_username(username: &str) -> Result<Self, IdentityError> {
        let not = || IdentityError::NotServiceAccount(username.to_owned());
        let rest = username.strip_prefix("system:serviceaccount:").ok_or_else(not)?;
        let (namespace, name) = rest.split_once(':').ok_or_else(not)?;
        if namespace.is_empty() || name.is_empty() || name.contains(':') || namespace.contains('.') {
            return Err(not());
        }
        Ok(Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        dns_name(s).map(Self)
    }
}

/// `spiffe://TRUST-DOMAIN/PATH` of at most 2048 bytes, without query, fragment, user or port (SPIFFE ID §2).
impl FromStr for SpiffeId {
    type Err = IdentityError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let not = || IdentityError::NotSpiffe(s.chars().take(256).collect());
        let (domain, path) = s
            .strip_prefix("spiffe://")
            .and_then(|rest| rest.split_once('/'))
            .ok_or_else(not)?;
        let in_domain =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
        let in_segment = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        let segment =
            |text: &str| !text.is_empty() && text != "." && text != ".." && text.bytes().all(in_segment);
        let fine = s.len() <= 2048
            && (1..=255).contains(&domain.len())
            && domain.bytes().all(in_domain)
            && path.split('/').all(segment);
        if fine { Ok(Self(s.to_owned())) } else { Err(not()) }
    }
}

/// A text that begins with `spiffe://` is a SPIFFE ID, any other a DNS name.
impl FromStr for PeerId {
    type Err = IdentityError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s.starts_with("spiffe://") {
            true => s.parse().map(Self::Spiffe),
            false => s.parse().map(Self::Dns),
        }
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        dns_name(s).map(Self)
    }
}

impl TrustDomain {
    /// The domain as text, lower case, without a trailing dot.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TrustDomain {
    fn default() -> Self {
        Self("cluster.local".to_owned())
    }
}

impl TryFrom<String> for Identity {
    type Error = IdentityError;

    fn try_from(s: String) -> Result<Self, Self::Error> {
        s.parse()
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = IdentityError;

    fn try_from(s: String) -> Result<Self, Self::Error> {
        s.parse()
    }
}

impl From<Identity> for PeerId {
    fn from(name: Identity) -> Self {
        Self::Dns(name)
    }
}

impl From<Identity> for String {
    fn from(id: Identity) -> Self {
        id.0
    }
}

impl From<TrustDomain> for String {
    fn from(td: TrustDomain) -> Self {
        td.0
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ServiceAccountRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

fn dns_name(s: &str) -> Result<String, IdentityError> {
    let name = s.strip_suffix('.').unwrap_or(s).to_ascii_lowercase();
    if name.is_empty() || name.len() > 253 {
        return Err(IdentityError::Length(s.to_owned()));
    }
    for label in name.split('.') {
        let fine = (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
        if !fine {
            return Err(IdentityError::Label {
                name: s.to_owned(),
                label: label.to_owned(),
            });
        }
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(namespace: &str, name: &str) -> ServiceAccountRef {
        ServiceAccountRef {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    #[test]
    fn service_account_and_back() {
        let id = Identity::for_service_account(
            &account("payments", "checkout"),
            "linkerd",
            &TrustDomain::default(),
        );
        let id = id.expect("valid parts");
        assert_eq!(
            id.as_str(),
            "checkout.payments.serviceaccount.identity.linkerd.cluster.local"
        );
        assert_eq!(id.service_account(), Some(account("payments", "checkout")));
    }

    #[test]
    fn service_account_name_with_dots() {
        let id = Identity::for_service_account(&account("ns", "a.b"), "linkerd", &TrustDomain::default());
        assert_eq!(
            id.expect("valid parts").service_account(),
            Some(account("ns", "a.b"))
        );
    }

    #[test]
    fn an_account_cannot_pose_as_another_by_its_name() {
        let posing = account(
            "evil",
            "web.payments.serviceaccount.identity.linkerd.cluster.local",
        );
        let domain = TrustDomain::default();
        let id = Identity::for_service_account(&posing, "linkerd", &domain).expect("valid parts");
        assert_eq!(id.account_in("linkerd", &domain), Some(posing));
        assert_eq!(id.account_in("other", &domain), None);
    }

    #[test]
    fn spiffe_ids_are_written_and_read() {
        let web = account("payments", "web");
        let id = SpiffeId::for_service_account(&web, &TrustDomain::default());
        assert_eq!(id.as_str(), "spiffe://cluster.local/ns/payments/sa/web");
        let read: SpiffeId = id.as_str().parse().expect("a SPIFFE ID");
        assert_eq!((read.service_account(), &read), (Some(web), &id));
        for bad in [
            "",
            "https://cluster.local/ns/a/sa/b",
            "spiffe://cluster.local",
            "spiffe:///ns/a/sa/b",
            "spiffe://cluster.local/",
            "spiffe://cluster.local/a//b",
            "spiffe://cluster.local/a/../b",
            "spiffe://cluster.local/a?b",
            "spiffe://cluster.local/a#b",
            "spiffe://cluster.local:1/a",
            "spiffe://user@cluster.local/a",
            "spiffe://CLUSTER.local/a",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad:?} was taken");
        }
        let other: SpiffeId = "spiffe://cluster.local/vm/a".parse().expect("a SPIFFE ID");
        assert_eq!(other.service_account(), None);
    }

    #[test]
    fn case_and_trailing_dot_do_not_matter() {
        let one: Identity = "Foo.Bar.".parse().expect("a name");
        let two: Identity = "foo.bar".parse().expect("a name");
        assert_eq!(one, two);
    }

    #[test]
    fn refuses_what_is_no_dns_name() {
        for bad in [
            "",
            ".",
            "a..b",
            "-a.b",
            "a-.b",
            "a b",
            "*.example",
            "é.example",
            &"a".repeat(64),
            &"a.".repeat(130),
        ] {
            assert!(bad.parse::<Identity>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn reads_user_names_of_service_accounts_only() {
        assert_eq!(
            ServiceAccountRef::from_username("system:serviceaccount:ns:sa"),
            Ok(account("ns", "sa"))
        );
        for bad in [
            "admin",
            "system:serviceaccount:ns",
            "system:serviceaccount::sa",
            "system:serviceaccount:ns:a:b",
            "system:node:x",
        ] {
            assert!(
                ServiceAccountRef::from_username(bad).is_err(),
                "{bad:?} was taken"
            );
        }
    }

    /// A name that is taken is a DNS name, is its own text, and is whose it says.
    #[test]
    fn fuzz_identities() {
        bolero::check!().for_each(|bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            let Ok(identity) = text.parse::<Identity>() else {
                return;
            };
            assert_eq!(identity.as_str().parse(), Ok(identity.clone()));
            assert!(identity.as_str().len() <= 253 && identity.as_str().is_ascii());
            if let Some(account) = identity.service_account() {
                let start = format!("{}.{}.", account.name, account.namespace);
                assert!(identity.as_str().starts_with(&start), "{identity}");
            }
        });
    }
}
