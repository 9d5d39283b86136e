//! Puts the root of trust into the cluster, once, and says what is missing of it.

use serde_json::Value;
use time::OffsetDateTime;
use tracing::info;

use super::{
    ISSUER_SECRET, IdentityError, IdentityWish, IssuerSource, TRUST_ROOTS, TRUST_ROOTS_KEY, make, secret,
    trust_roots,
};
use crate::{
    cluster::{Cluster, ClusterError, Kind},
    object::{self, ObjectId},
};

/// Why the root of trust is not in place.
#[derive(Debug, thiserror::Error)]
pub enum EnsureError {
    #[error("the API server knows no {0}")]
    NoKind(&'static str),
    #[error("the trust anchor and issuer cannot be kept in the cluster")]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Make(#[from] IdentityError),
    #[error(
        "Secret {namespace}/{name} holds no `ca.crt` to trust: give it, or identity.trustAnchorsPEM in the profile"
    )]
    NoAnchors { namespace: String, name: String },
    #[error(
        "Secret {namespace}/{name} is not there yet: cert-manager, or whoever keeps the issuer, has to make it"
    )]
    Waiting { namespace: String, name: String },
    #[error(
        "Secret {namespace}/linkerd-identity-issuer exists, but ConfigMap linkerd-identity-trust-roots does not, and the Secret holds no ca.crt to make it from"
    )]
    Halved { namespace: String },
}

/// What is missing, by name; empty when the root of trust is in place. Only reads.
///
/// # Errors
/// The API server does not answer.
pub async fn missing(cluster: &Cluster, wish: &IdentityWish) -> Result<Vec<String>, ClusterError> {
    let mut names = Vec::new();
    let (Some(secrets), Some(maps)) = (
        cluster.kind("v1", "Secret").await,
        cluster.kind("v1", "ConfigMap").await,
    ) else {
        return Ok(names);
    };
    let own = matches!(wish.issuer, IssuerSource::SelfSigned { .. });
    if own
        && cluster
            .get(&secrets, &id("Secret", wish, ISSUER_SECRET))
            .await?
            .is_none()
    {
        names.push(ISSUER_SECRET.to_owned());
    }
    let roots = cluster.get(&maps, &id("ConfigMap", wish, TRUST_ROOTS)).await?;
    if roots.is_none_or(|roots| {
        object::text_at(&roots, &["data", TRUST_ROOTS_KEY]).is_none_or(|pem| pem.trim().is_empty())
    }) {
        names.push(TRUST_ROOTS.to_owned());
    }
    Ok(names)
}

/// Makes what is missing. What is there is never changed.
///
/// # Errors
/// As [`EnsureError`] says; [`EnsureError::Waiting`] calls for patience, not for help.
pub async fn ensure(cluster: &Cluster, wish: &IdentityWish) -> Result<(), EnsureError> {
    let secrets = cluster
        .kind("v1", "Secret")
        .await
        .ok_or(EnsureError::NoKind("Secret"))?;
    let maps = cluster
        .kind("v1", "ConfigMap")
        .await
        .ok_or(EnsureError::NoKind("ConfigMap"))?;
    let name = match &wish.issuer {
        IssuerSource::SelfSigned { .. } => ISSUER_SECRET,
        IssuerSource::Secret { name } => name,
    };
    let secret_id = id("Secret", wish, name);
    let mut live = cluster.get(&secrets, &secret_id).await?;
    if let (None, IssuerSource::SelfSigned { trust_domain }) = (&live, &wish.issuer) {
        let credentials = make(trust_domain, &wish.namespace, OffsetDateTime::now_utc())?;
        live = Some(
            create_once(
                cluster,
                &secrets,
                &secret_id,
                &secret(&wish.namespace, &credentials),
            )
            .await?,
        );
        info!(secret = %secret_id, "Made the mesh's trust anchor and issuer");
    }
    let roots_id = id("ConfigMap", wish, TRUST_ROOTS);
    let roots = cluster.get(&maps, &roots_id).await?;
    let filled = roots
        .as_ref()
        .and_then(|roots| object::text_at(roots, &["data", TRUST_ROOTS_KEY]))
        .is_some_and(|pem| !pem.trim().is_empty());
    if filled {
        return Ok(());
    }
    let (namespace, name) = (wish.namespace.clone(), name.to_owned());
    let pem = match (&wish.anchors_pem, &live) {
        (Some(pem), _) => pem.clone(),
        (None, Some(live)) => anchors(live).ok_or(match wish.issuer {
            IssuerSource::SelfSigned { .. } => EnsureError::Halved { namespace },
            IssuerSource::Secret { .. } => EnsureError::NoAnchors { namespace, name },
        })?,
        (None, None) => return Err(EnsureError::Waiting { namespace, name }),
    };
    let body = trust_roots(&wish.namespace, &pem);
    match roots {
        None => drop(create_once(cluster, &maps, &roots_id, &body).await?),
        // Somebody made an empty one, as a mount's placeholder.
        Some(_) => drop(
            cluster
                .merge(
                    &maps,
                    &roots_id,
                    &serde_json::json!({"data": {TRUST_ROOTS_KEY: pem}}),
                )
                .await?,
        ),
    }
    info!(config_map = %roots_id, "Published the trust anchors");
    Ok(())
}

/// Creates an object unless somebody else just did, whose it then is.
async fn create_once(
    cluster: &Cluster,
    kind: &Kind,
    id: &ObjectId,
    body: &Value,
) -> Result<Value, ClusterError> {
    match cluster.create(kind, id, body, false).await {
        Err(error)
            if error
                .status()
                .is_some_and(|status| status.reason == "AlreadyExists") =>
        {
            cluster.get(kind, id).await.and_then(|live| live.ok_or(error))
        }
        other => other,
    }
}

fn anchors(secret: &Value) -> Option<String> {
    use base64::Engine as _;
    let encoded = object::text_at(secret, &["data", "ca.crt"])?;
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).ok()?;
    String::from_utf8(bytes).ok().filter(|pem| !pem.trim().is_empty())
}

fn id(kind: &str, wish: &IdentityWish, name: &str) -> ObjectId {
    ObjectId::new("", kind, &wish.namespace, name)
}
