//! Who asks: a service-account token, reviewed by the Kubernetes API for the audience `identity.l5d.io` and no other.
//!
//! Linkerd reviews a token without an audience when the first review fails; Heddle does not, so that a token made for
//! something else never buys a certificate.
//!
//! A token that a kubelet mounts is bound to its pod. The API reviews it only while that pod, by UID, exists; the
//! review names the pod, and a verdict that names it in part is in doubt and refused. [`Reviews::require_pod`] refuses
//! tokens that are bound to no pod, such as those of `kubectl create token`.

use std::{collections::BTreeMap, fmt, future::Future, time::Duration};

use heddle_mesh::{IDENTITY_TOKEN_AUDIENCE, IdentityError, ServiceAccountRef};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::{Api, Client, api::PostParams};
use tokio::time::timeout;

/// A token is one or two kilobytes.
pub const TOKEN_BYTES_MAX: usize = 64 * 1024;
/// Less than what proxies wait, together with the wait for a turn.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// A bearer token as received. It is never printed.
pub struct Token(String);

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
    /// The API failed.
    #[error("the Kubernetes API did not review the token")]
    Review(#[source] Box<kube::Error>),
    /// The API took too long.
    #[error("the Kubernetes API did not review the token within {REVIEW_TIMEOUT:?}")]
    Timeout,
}

/// Finds out whose token it is.
pub trait Authenticate: Send + Sync + 'static {
    /// The account that the token proves.
    fn authenticate(&self, token: &Token) -> impl Future<Output = Result<Account, TokenError>> + Send;
}

/// Authenticates by TokenReview.
#[derive(Clone)]
pub struct Reviews {
    api: Api<TokenReview>,
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
            _ if !bytes.iter().all(u8::is_ascii_graphic) => Err(InvalidToken::Malformed),
            _ => Ok(Self(String::from_utf8_lossy(bytes).into_owned())),
        }
    }

    /// The text itself; never to be logged.
    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl Reviews {
    /// Reviews tokens with the API that `client` speaks to.
    pub fn new(client: Client) -> Self {
        Self {
            api: Api::all(client),
            require_pod: false,
        }
    }

    /// Refuses tokens that are bound to no pod.
    #[must_use]
    pub fn require_pod(mut self, require_pod: bool) -> Self {
        self.require_pod = require_pod;
        self
    }
}

impl Authenticate for Reviews {
    async fn authenticate(&self, token: &Token) -> Result<Account, TokenError> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![IDENTITY_TOKEN_AUDIENCE.to_owned()]),
                token: token.secret().to_owned(),
            },
            ..TokenReview::default()
        };
        let reviewed = match timeout(REVIEW_TIMEOUT, self.api.create(&PostParams::default(), &review)).await {
            Ok(Ok(reviewed)) => reviewed,
            Ok(Err(error)) => return Err(TokenError::Review(Box::new(error))),
            Err(_) => return Err(TokenError::Timeout),
        };
        let account = judge(reviewed.status.ok_or(TokenError::NoStatus)?)?;
        if self.require_pod && account.pod.is_none() {
            return Err(TokenError::NotBound);
        }
        Ok(account)
    }
}

/// Reads the API's verdict. It must say "authenticated", confirm the audience, and name a service account.
fn judge(status: TokenReviewStatus) -> Result<Account, TokenError> {
    let TokenReviewStatus {
        audiences,
        authenticated,
        error,
        user,
    } = status;
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
fn bound_pod(mut extra: BTreeMap<String, Vec<String>>) -> Result<Option<BoundPod>, TokenError> {
    let mut values = |key| extra.remove(key).unwrap_or_default();
    match (values(POD_NAME).as_mut_slice(), values(POD_UID).as_mut_slice()) {
        ([], []) => Ok(None),
        ([name], [uid]) if !name.is_empty() && !uid.is_empty() => Ok(Some(BoundPod {
            name: std::mem::take(name),
            uid: std::mem::take(uid),
        })),
        _ => Err(TokenError::PodInDoubt),
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::authentication::v1::UserInfo;

    use super::*;

    fn mk_status(authenticated: bool, audience: &str, username: &str) -> TokenReviewStatus {
        TokenReviewStatus {
            audiences: Some(vec![audience.to_owned()]),
            authenticated: Some(authenticated),
            error: None,
            user: Some(UserInfo {
                username: Some(username.to_owned()),
                uid: Some("1-2-3".to_owned()),
                ..UserInfo::default()
            }),
        }
    }

    #[test]
    fn a_service_account_with_our_audience_is_authenticated() {
        let account = judge(mk_status(
            true,
            "identity.l5d.io",
            "system:serviceaccount:payments:web",
        ));
        let expected = ServiceAccountRef {
            namespace: "payments".into(),
            name: "web".into(),
        };
        assert_eq!(
            account.expect("authenticated"),
            Account {
                account: expected,
                uid: Some("1-2-3".into()),
                pod: None,
            }
        );
    }

    #[test]
    fn a_pod_is_named_whole_or_not_at_all() {
        let judged = |extra: &[(&str, &[&str])]| {
            let mut status = mk_status(true, "identity.l5d.io", "system:serviceaccount:payments:web");
            let values = |values: &[&str]| values.iter().map(|&value| value.to_owned()).collect();
            let extra = extra.iter().map(|&(key, of)| (key.to_owned(), values(of)));
            status.user.as_mut().expect("there").extra = Some(extra.collect());
            judge(status).map(|account| account.pod)
        };
        let bound = judged(&[(POD_NAME, &["web-1"]), (POD_UID, &["u-1"]), ("other", &["x"])]);
        let expected = BoundPod {
            name: "web-1".into(),
            uid: "u-1".into(),
        };
        assert_eq!(bound.expect("authenticated"), Some(expected));
        assert_eq!(judged(&[("other", &["x"])]).expect("authenticated"), None);
        let in_doubt = |extra: &[(&str, &[&str])]| matches!(judged(extra), Err(TokenError::PodInDoubt));
        assert!(in_doubt(&[(POD_NAME, &["web-1"])]));
        assert!(in_doubt(&[(POD_UID, &["u-1"])]));
        assert!(in_doubt(&[(POD_NAME, &["web-1", "web-2"]), (POD_UID, &["u-1"])]));
        assert!(in_doubt(&[(POD_NAME, &[""]), (POD_UID, &["u-1"])]));
    }

    #[test]
    fn anything_less_is_refused() {
        let user = "system:serviceaccount:payments:web";
        assert!(matches!(
            judge(mk_status(false, "identity.l5d.io", user)),
            Err(TokenError::Refused { .. })
        ));
        assert!(matches!(
            judge(mk_status(true, "https://kubernetes.default.svc", user)),
            Err(TokenError::Audience)
        ));
        let none = TokenReviewStatus {
            audiences: None,
            ..mk_status(true, "", user)
        };
        assert!(matches!(judge(none), Err(TokenError::Audience)));
        let silent = TokenReviewStatus {
            authenticated: None,
            ..mk_status(true, "identity.l5d.io", user)
        };
        assert!(matches!(judge(silent), Err(TokenError::Refused { .. })));
        for user in [
            "",
            "admin",
            "system:node:n1",
            "system:serviceaccount:a",
            "system:serviceaccount:a:b:c",
        ] {
            let judged = judge(mk_status(true, "identity.l5d.io", user));
            assert!(
                matches!(judged, Err(TokenError::NotServiceAccount(_))),
                "{user:?}"
            );
        }
    }

    #[test]
    fn a_token_is_bounded_and_never_printed() {
        let token = Token::parse(b" eyJhbGciOi.J9.x\n").expect("a token");
        assert_eq!(token.secret(), "eyJhbGciOi.J9.x");
        assert_eq!(format!("{token:?}"), "Token(..)");
        assert_eq!(Token::parse(b" \n").expect_err("blank"), InvalidToken::Empty);
        assert_eq!(
            Token::parse(b"a b").expect_err("a space"),
            InvalidToken::Malformed
        );
        assert_eq!(
            Token::parse(&[0xff]).expect_err("no ASCII"),
            InvalidToken::Malformed
        );
        let long = vec![b'a'; TOKEN_BYTES_MAX + 1];
        assert_eq!(
            Token::parse(&long).expect_err("long"),
            InvalidToken::TooLarge(TOKEN_BYTES_MAX + 1)
        );
    }
}
