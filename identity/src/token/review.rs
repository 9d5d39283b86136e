//! A TokenReview as far as it is asked and read here: the question, and what of the answer counts. The answer repeats the
//! question, token and all; what is not read is not copied.

use heddle_mesh::IDENTITY_TOKEN_AUDIENCE;
use hyper::body::Bytes;
use serde::{Deserialize, Serialize};

use super::Token;

/// All of a question but the token.
const REST_BYTES: usize = 256;

/// The verdict; where JSON has `null` or nothing, there is nothing.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Verdict {
    pub(super) audiences: Option<Vec<String>>,
    pub(super) authenticated: Option<bool>,
    pub(super) error: Option<String>,
    pub(super) user: Option<User>,
}

/// Whose token it is.
#[derive(Debug, Default, Deserialize)]
pub(super) struct User {
    pub(super) username: Option<String>,
    pub(super) uid: Option<String>,
    pub(super) extra: Option<Extra>,
}

/// What the authenticator adds; a key that comes twice is an error, not a choice.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Extra {
    #[serde(rename = "authentication.kubernetes.io/pod-name")]
    pub(super) pod_name: Option<Vec<String>>,
    #[serde(rename = "authentication.kubernetes.io/pod-uid")]
    pub(super) pod_uid: Option<Vec<String>>,
}

/// The question, in JSON.
pub(super) fn question(token: &Token) -> Result<Bytes, serde_json::Error> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Review<'a> {
        api_version: &'static str,
        kind: &'static str,
        spec: Spec<'a>,
    }
    #[derive(Serialize)]
    struct Spec<'a> {
        audiences: [&'static str; 1],
        token: &'a str,
    }
    let review = Review {
        api_version: "authentication.k8s.io/v1",
        kind: "TokenReview",
        spec: Spec {
            audiences: [IDENTITY_TOKEN_AUDIENCE],
            token: token.secret(),
        },
    };
    // A token that is one has nothing to escape.
    let mut text = Vec::with_capacity(token.secret().len() + REST_BYTES);
    serde_json::to_writer(&mut text, &review)?;
    Ok(text.into())
}

/// What is decided in an answer, if anything.
pub(super) fn verdict(answer: &[u8]) -> Result<Option<Verdict>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Review {
        status: Option<Verdict>,
    }
    serde_json::from_slice::<Review>(answer).map(|review| review.status)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};

    use super::*;

    #[test]
    fn the_question_is_a_token_review() {
        let token = Token::parse(b"eyJ.a\"\\b.c").expect("a token");
        let asked: TokenReview =
            serde_json::from_slice(&question(&token).expect("JSON")).expect("a TokenReview");
        let expected = TokenReviewSpec {
            audiences: Some(vec!["identity.l5d.io".into()]),
            token: "eyJ.a\"\\b.c".into(),
        };
        assert_eq!(asked.spec, expected);
    }

    #[test]
    fn nothing_counts_twice() {
        let twice = br#"{"status": {"authenticated": false, "authenticated": true}}"#;
        verdict(twice).expect_err("in doubt");
        let twice = br#"{"status": {"user": {"extra": {
            "authentication.kubernetes.io/pod-name": ["a"], "authentication.kubernetes.io/pod-name": ["b"]}}}}"#;
        verdict(twice).expect_err("in doubt");
        let nothing = verdict(br#"{"kind": "TokenReview", "status": null}"#);
        assert!(nothing.expect("an answer").is_none());
    }
}
