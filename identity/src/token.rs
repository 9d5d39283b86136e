//! Who asks: a service-account token, reviewed by the Kubernetes API for the audience `identity.l5d.io` and no other.
//!
//! Linkerd reviews a token without an audience when the first review fails; Heddle does not, so that a token made for
//! something else never buys a certificate.
//!
//! A token that a kubelet mounts is bound to its pod. The API reviews it only while that pod, by UID, exists; the
//! review names the pod, and a verdict that names it in part is in doubt and refused. [`Reviews::require_pod`] refuses
//! tokens that are bound to no pod, such as those of `kubectl create token`.

mod api;
mod review;

use std::{fmt, future::Future, time::Duration};

use aws_lc_rs::digest;
use heddle_mesh::{IDENTITY_TOKEN_AUDIENCE, IdentityError, ServiceAccountRef};
use hyper::body::Bytes;
use kube::Config;
use tokio::time::{Instant, timeout, timeout_at};

pub use self::api::ApiError;
use self::{
    api::Connections,
    review::{Extra, Verdict},
};

/// A token is one or two kilobytes.
pub const TOKEN_BYTES_MAX: usize = 64 * 1024;
/// Less than what proxies wait, together with the wait for a turn.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);
/// An API server that has not answered by then may have lost the request: it is asked once more.
const FIRST_TIMEOUT: Duration = Duration::from_secs(2);
/// Before it is asked once more; half of it at random, so that many do not come back together.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// An overloaded API server may want more time than that, and gets as much as a second.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(1);

/// A bearer token as received. It is never printed.
pub struct Token {
    text: String,
    /// What stands for it where it must not be kept: half a SHA-256.
    digest: [u8; 16],
}

/// A service account that proved itself with a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Which one.
    pub account: ServiceAccountRef,
    /// Its object's UID, for Events.
    pub uid: Option<String>,
    /// The pod that the token is bound to.
    pub pod: Option<BoundPod>,
}

/// The pod that a token is bound to; it existed when the token was reviewed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundPod {
    /// In the account's namespace.
    pub name: String,
    /// Of this very pod.
    pub uid: String,
}

/// A text that cannot be a token.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    /// No text.
    #[error("token is empty: expected a service-account token")]
    Empty,
    /// Too much of it.
    #[error("token has {0} bytes, at most {TOKEN_BYTES_MAX} are taken")]
    TooLarge(usize),
    /// Bytes that no bearer token has.
    #[error("token is not a bearer token: expected printable ASCII")]
    Malformed,
}

/// Why a token proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The API refuses the token: expired, forged, for another audience, or its pod or account is gone.
    #[error("the token is not valid for the audience {IDENTITY_TOKEN_AUDIENCE}")]
    Refused {
        /// What the API said, for the log.
        reason: Option<String>,
    },
    /// The API took the token without looking at the audience.
    #[error("the Kubernetes API did not confirm the token's audience {IDENTITY_TOKEN_AUDIENCE}")]
    Audience,
    /// The token is not a service account's.
    #[error("the token is not a service account's")]
    NotServiceAccount(#[source] IdentityError),
    /// The pod is named in part, or more than once.
    #[error(
        "the Kubernetes API named the token's pod in part: expected one pod-name and one pod-uid, or neither"
    )]
    PodInDoubt,
    /// Only tokens of pods are taken.
    #[error(
        "the token is not bound to a pod: only tokens that a kubelet mounts into pods are taken (--require-pod-tokens)"
    )]
    NotBound,
    /// The API's answer has no result.
    #[error("the Kubernetes API answered a token review without a status")]
    NoStatus,
    /// The API will not review tokens for us.
    #[error("the Kubernetes API did not review the token")]
    Review(#[source] ApiError),
    /// The API cannot review it now.
    #[error("the Kubernetes API cannot review the token now")]
    Unavailable(#[source] ApiError),
    /// The API took too long, twice.
    #[error("the Kubernetes API did not review the token within {REVIEW_TIMEOUT:?}")]
    Timeout,
}

/// Finds out whose token it is.
pub trait Authenticate: Send + Sync + 'static {
    /// The account that the token proves.
    fn authenticate(&self, token: &Token) -> impl Future<Output = Result<Account, TokenError>> + Send;
}

/// Authenticates by TokenReview.
pub struct Reviews {
    api: Connections,
    require_pod: bool,
}

impl Token {
    /// Takes a token's bytes.
    ///
    /// # Errors
    /// They cannot be a token.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidToken> {
        let bytes = bytes.trim_ascii();
        match bytes.len() {
            0 => Err(InvalidToken::Empty),
            length if length > TOKEN_BYTES_MAX => Err(InvalidToken::TooLarge(length)),
            _ => match std::str::from_utf8(bytes) {
                // Without an early end, so that many bytes are looked at together.
                Ok(text) if bytes.iter().fold(true, |all, byte| all & byte.is_ascii_graphic()) => Ok(Self {
                    text: text.to_owned(),
                    digest: half_digest(bytes),
                }),
                _ => Err(InvalidToken::Malformed),
            },
        }
    }

    /// The text itself; never to be logged.
    pub fn secret(&self) -> &str {
        &self.text
    }

    /// Stands for the token, and does not tell it.
    pub(crate) fn digest(&self) -> &[u8; 16] {
        &self.digest
    }
}

impl Reviews {
    /// Reviews tokens with the API server of `config`.
    ///
    /// # Errors
    /// The configuration makes no client.
    pub fn new(config: &Config) -> kube::Result<Self> {
        Ok(Self {
            api: Connections::new(config)?,
            require_pod: false,
        })
    }

    /// Refuses tokens that are bound to no pod.
    #[must_use]
    pub fn require_pod(mut self, require_pod: bool) -> Self {
        self.require_pod = require_pod;
        self
    }
}

impl Reviews {
    /// Asks, and once more when an answer may yet be had: an API server that rolls or is overloaded is back in a moment,
    /// and a proxy that starts now has nothing to fall back on.
    async fn review(&self, question: &Bytes) -> Result<Option<Verdict>, TokenError> {
        let deadline = Instant::now() + REVIEW_TIMEOUT;
        let least = match timeout(FIRST_TIMEOUT, self.api.ask(question, false)).await {
            Ok(Ok(verdict)) => return Ok(verdict),
            Ok(Err(error)) => match error.passes_after() {
                Some(wait) => wait.clamp(RETRY_AFTER / 2, RETRY_AFTER_MAX),
                None => return Err(TokenError::Review(error)),
            },
            Err(_) => Duration::ZERO,
        };
        let again = async {
            if !least.is_zero() {
                tokio::time::sleep(least + RETRY_AFTER.mul_f64(rand::random_range(0.0..0.5))).await;
            }
            self.api.ask(question, true).await
        };
        match timeout_at(deadline, again).await {
            Ok(answer) => answer.map_err(|error| match error.passes_after() {
                Some(_) => TokenError::Unavailable(error),
                None => TokenError::Review(error),
            }),
            Err(_) => Err(TokenError::Timeout),
        }
    }
}

impl Authenticate for Reviews {
    async fn authenticate(&self, token: &Token) -> Result<Account, TokenError> {
        let question =
            review::question(token).map_err(|error| TokenError::Review(ApiError::Question(error)))?;
        let verdict = self.review(&question).await?;
        let account = judge(verdict.ok_or(TokenError::NoStatus)?)?;
        if self.require_pod && account.pod.is_none() {
            return Err(TokenError::NotBound);
        }
        Ok(account)
    }
}

/// Reads the API's verdict. It must say "authenticated", confirm the audience, and name a service account.
fn judge(verdict: Verdict) -> Result<Account, TokenError> {
    let Verdict {
        audiences,
        authenticated,
        error,
        user,
    } = verdict;
    if authenticated != Some(true) {
        return Err(TokenError::Refused { reason: error });
    }
    // An authenticator that knows no audiences leaves the list empty.
    if !audiences
        .unwrap_or_default()
        .iter()
        .any(|audience| audience == IDENTITY_TOKEN_AUDIENCE)
    {
        return Err(TokenError::Audience);
    }
    let user = user.unwrap_or_default();
    let account = ServiceAccountRef::from_username(user.username.as_deref().unwrap_or_default())
        .map_err(TokenError::NotServiceAccount)?;
    Ok(Account {
        account,
        uid: user.uid.filter(|uid| !uid.is_empty()),
        pod: bound_pod(user.extra.unwrap_or_default())?,
    })
}

/// The pod that the review names: by name and UID, each once, or not at all.
fn bound_pod(extra: Extra) -> Result<Option<BoundPod>, TokenError> {
    let Extra { pod_name, pod_uid } = extra;
    let (mut names, mut uids) = (pod_name.unwrap_or_default(), pod_uid.unwrap_or_default());
    match (names.as_mut_slice(), uids.as_mut_slice()) {
        ([], []) => Ok(None),
        ([name], [uid]) if !name.is_empty() && !uid.is_empty() => Ok(Some(BoundPod {
            name: std::mem::take(name),
            uid: std::mem::take(uid),
        })),
        _ => Err(TokenError::PodInDoubt),
    }
}

/// Half a SHA-256: what stands for a text that is not to be kept.
pub(crate) fn half_digest(text: &[u8]) -> [u8; 16] {
    *digest::digest(&digest::SHA256, text)
        .as_ref()
        .first_chunk()
        .expect("SHA-256 has 32 bytes, more than 16")
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests;
