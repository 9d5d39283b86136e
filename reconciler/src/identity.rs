//! The mesh's root of trust as runtime state: made once in the cluster, never in Git, never in a diff.
//!
//! With `issuer.selfSigned` the reconciler makes a trust anchor and an issuer, keeps the issuer as a Secret and throws
//! the anchor's key away. With cert-manager or an existing Secret it only fills the ConfigMap of trust roots from the
//! Secret's `ca.crt`. What exists is never overwritten: the cluster owns it. This module makes the objects;
//! [`cluster`] puts them there.

pub mod cluster;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::object;

/// The Secret that the identity service mounts.
pub const ISSUER_SECRET: &str = "linkerd-identity-issuer";
/// The ConfigMap that every component reads trust anchors from.
pub const TRUST_ROOTS: &str = "linkerd-identity-trust-roots";
/// Its key.
pub const TRUST_ROOTS_KEY: &str = "ca-bundle.crt";

/// Anchor and issuer live this long. The anchor's key is gone, so the issuer cannot be renewed under it.
const LIFETIME: time::Duration = time::Duration::days(3650);
/// Clocks of the machines that check a new certificate may be this far behind.
const BACKDATE: time::Duration = time::Duration::minutes(1);

/// Who makes the issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IssuerSource {
    /// We do, once.
    SelfSigned { trust_domain: String },
    /// Somebody keeps this Secret: cert-manager by a rendered Certificate, or a person.
    Secret { name: String },
}

/// A profile's wish about identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityWish {
    pub namespace: String,
    pub issuer: IssuerSource,
    /// Trust anchors written in the profile; they win over the Secret's `ca.crt`.
    pub anchors_pem: Option<String>,
}

impl IdentityWish {
    /// Reads the values of the core profile; `None` for a profile without identity.
    pub fn from_values(values: &Value, namespace: &str) -> Option<Self> {
        let identity = values.get("identity").filter(|identity| identity.is_object())?;
        let issuer = identity.get("issuer").unwrap_or(&Value::Null);
        let given = |key: &str| issuer.get(key).filter(|value| !value.is_null());
        let issuer = if given("certManager").is_some() {
            IssuerSource::Secret {
                name: ISSUER_SECRET.to_owned(),
            }
        } else if let Some(secret) = given("existingSecret") {
            IssuerSource::Secret {
                name: object::text_at(secret, &["name"])
                    .unwrap_or(ISSUER_SECRET)
                    .to_owned(),
            }
        } else {
            let trust_domain = object::text_at(identity, &["trustDomain"])
                .unwrap_or("cluster.local")
                .to_owned();
            IssuerSource::SelfSigned { trust_domain }
        };
        let anchors_pem = object::text_at(identity, &["trustAnchorsPEM"]).map(str::to_owned);
        Some(Self {
            namespace: namespace.to_owned(),
            issuer,
            anchors_pem,
        })
    }
}

/// Why no issuer could be made.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("the trust anchor and issuer cannot be made")]
    Make(#[from] rcgen::Error),
}

/// A new root of trust.
#[derive(Clone)]
pub struct Credentials {
    pub anchor_pem: String,
    pub issuer_pem: String,
    pub issuer_key_pem: String,
}

/// Makes an anchor and an issuer under it, both ECDSA P-256.
///
/// # Errors
/// What the crypto library says.
pub fn make(trust_domain: &str, namespace: &str, now: OffsetDateTime) -> Result<Credentials, IdentityError> {
    let params = |name: String, depth| -> Result<CertificateParams, rcgen::Error> {
        let mut params = CertificateParams::new(vec![name.clone()])?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(depth));
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        params.not_before = now - BACKDATE;
        params.not_after = now + LIFETIME;
        Ok(params)
    };
    let anchor_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let anchor_params = params(format!("root.{namespace}.{trust_domain}"), 1)?;
    let anchor = anchor_params.self_signed(&anchor_key)?;
    let anchor_issuer = Issuer::new(anchor_params, anchor_key);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut issuer_params = params(format!("identity.{namespace}.{trust_domain}"), 0)?;
    issuer_params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let issuer = issuer_params.signed_by(&key, &anchor_issuer)?;
    Ok(Credentials {
        anchor_pem: anchor.pem(),
        issuer_pem: issuer.pem(),
        issuer_key_pem: key.serialize_pem(),
    })
}

fn labels() -> Value {
    json!({
        heddle_mesh::label::CONTROL_PLANE_COMPONENT: "identity",
        heddle_mesh::label::CONTROL_PLANE_NS: heddle_mesh::CONTROL_NAMESPACE,
    })
}

/// The issuer's Secret, in cert-manager's form.
pub fn secret(namespace: &str, credentials: &Credentials) -> Value {
    use base64::Engine as _;
    let b64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": ISSUER_SECRET, "namespace": namespace, "labels": labels()},
        "data": {
            "tls.crt": b64(&credentials.issuer_pem),
            "tls.key": b64(&credentials.issuer_key_pem),
            "ca.crt": b64(&credentials.anchor_pem),
        },
    })
}

/// The ConfigMap of trust roots.
pub fn trust_roots(namespace: &str, anchors_pem: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": TRUST_ROOTS, "namespace": namespace, "labels": labels()},
        "data": {TRUST_ROOTS_KEY: anchors_pem},
    })
}

/// The objects of identity that `heddle install` prints, as far as they are known without a cluster.
///
/// # Errors
/// What the crypto library says.
pub fn install_objects(values: &Value, namespace: &str, _profile: &str) -> Result<Vec<Value>, IdentityError> {
    let Some(wish) = IdentityWish::from_values(values, namespace) else {
        return Ok(Vec::new());
    };
    match (&wish.issuer, &wish.anchors_pem) {
        (IssuerSource::SelfSigned { trust_domain }, _) => {
            let credentials = make(trust_domain, namespace, OffsetDateTime::now_utc())?;
            Ok(vec![
                secret(namespace, &credentials),
                trust_roots(namespace, &credentials.anchor_pem),
            ])
        }
        (IssuerSource::Secret { .. }, Some(pem)) => Ok(vec![trust_roots(namespace, pem)]),
        (IssuerSource::Secret { .. }, None) => Ok(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_issuer_is_signed_by_the_anchor_and_may_sign_leaves_only() {
        let now = OffsetDateTime::from_unix_timestamp(1_790_000_000).unwrap();
        let made = make("example.org", "linkerd", now).unwrap();
        let der = |pem: &str| {
            x509_parser::pem::parse_x509_pem(pem.as_bytes())
                .unwrap()
                .1
                .contents
        };
        let (anchor, issuer) = (der(&made.anchor_pem), der(&made.issuer_pem));
        let anchor = x509_parser::parse_x509_certificate(&anchor).unwrap().1;
        let issuer = x509_parser::parse_x509_certificate(&issuer).unwrap().1;
        assert_eq!(issuer.issuer(), anchor.subject());
        assert_eq!(issuer.subject().to_string(), "CN=identity.linkerd.example.org");
        assert_eq!(
            issuer
                .basic_constraints()
                .unwrap()
                .unwrap()
                .value
                .path_len_constraint,
            Some(0)
        );
        assert!(made.issuer_key_pem.contains("BEGIN PRIVATE KEY"));
    }

    #[test]
    fn the_wish_follows_the_values() {
        let wish = |values| IdentityWish::from_values(&values, "linkerd");
        assert_eq!(wish(json!({})), None);
        let own = wish(
            json!({"identity": {"trustDomain": "a.b", "issuer": {"selfSigned": {}, "certManager": null}}}),
        );
        assert_eq!(
            own.unwrap().issuer,
            IssuerSource::SelfSigned {
                trust_domain: "a.b".into()
            }
        );
        let kept = wish(
            json!({"identity": {"issuer": {"existingSecret": {"name": "mine"}}, "trustAnchorsPEM": "PEM"}}),
        )
        .unwrap();
        assert_eq!(
            (kept.issuer, kept.anchors_pem.as_deref()),
            (IssuerSource::Secret { name: "mine".into() }, Some("PEM"))
        );
    }
}
