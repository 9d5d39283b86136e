//! AdmissionReview v1: what the API server asks, and the answer; no decisions here.

use json_patch::Patch;
use serde::{
    Deserialize,
    de::{DeserializeOwned, IgnoredAny},
};
use serde_json::json;

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";
/// The API server cuts longer warnings, and drops all of them beyond 4096 bytes.
const WARNING_BYTES_MAX: usize = 256;
const WARNINGS_MAX: usize = 8;

/// The question without the object.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Request {
    pub(crate) uid: String,
    pub(crate) kind: Kind,
    #[serde(default)]
    pub(crate) namespace: String,
    #[serde(default)]
    pub(crate) name: String,
    pub(crate) operation: String,
    #[serde(default)]
    pub(crate) dry_run: Option<bool>,
}

/// The object's type.
#[derive(Debug, Deserialize)]
pub(crate) struct Kind {
    #[serde(default)]
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) kind: String,
}

/// The answer.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// Why the object is refused; admitted without.
    pub(crate) denied: Option<String>,
    pub(crate) patch: Option<Patch>,
    pub(crate) warnings: Vec<String>,
    /// What goes into the API server's audit log.
    pub(crate) audit: Option<Audit>,
}

/// An annotation in the audit log.
#[derive(Debug)]
pub(crate) struct Audit {
    pub(crate) key: &'static str,
    pub(crate) text: String,
}

/// Why a body is no question.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReviewError {
    #[error("the body is not an AdmissionReview in JSON")]
    Json(#[source] serde_json::Error),
    #[error("the body is {kind} of {api_version}: expected {KIND} of {API_VERSION}")]
    Version { api_version: String, kind: String },
    #[error("the AdmissionReview has no request")]
    NoRequest,
    #[error("the AdmissionReview's request has no uid")]
    NoUid,
    #[error("the request's object is not a {kind}")]
    Object {
        kind: &'static str,
        source: serde_json::Error,
    },
}

impl Request {
    /// Reads the question, and leaves the object for later: its type is not known before.
    pub(crate) fn read(body: &[u8]) -> Result<Self, ReviewError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Review<R> {
            #[serde(default)]
            api_version: String,
            #[serde(default)]
            kind: String,
            request: Option<R>,
        }
        fn known<R>(review: Review<R>) -> Result<R, ReviewError> {
            let Review {
                api_version,
                kind,
                request,
            } = review;
            match api_version == API_VERSION && kind == KIND {
                true => request.ok_or(ReviewError::NoRequest),
                false => Err(ReviewError::Version { api_version, kind }),
            }
        }
        match serde_json::from_slice::<Review<Self>>(body) {
            Ok(review) => known(review).and_then(|request| match request.uid.is_empty() {
                true => Err(ReviewError::NoUid),
                false => Ok(request),
            }),
            // Another version's request may well look different: say that, rather than which field is missing.
            Err(error) => match serde_json::from_slice::<Review<IgnoredAny>>(body) {
                Ok(review) => known(review).and(Err(ReviewError::Json(error))),
                Err(_) => Err(ReviewError::Json(error)),
            },
        }
    }
}

/// Reads the object that the question is about.
pub(crate) fn object<T: DeserializeOwned>(body: &[u8], kind: &'static str) -> Result<T, ReviewError> {
    #[derive(Deserialize)]
    struct Review<T> {
        request: Inner<T>,
    }
    #[derive(Deserialize)]
    struct Inner<T> {
        object: T,
    }
    let review: Review<T> =
        serde_json::from_slice(body).map_err(|source| ReviewError::Object { kind, source })?;
    Ok(review.request.object)
}

impl Answer {
    /// The answer as the API server reads it.
    pub(crate) fn to_json(&self, uid: &str) -> Vec<u8> {
        use base64::Engine as _;
        let mut response = json!({"uid": uid, "allowed": self.denied.is_none()});
        if let Some(denied) = &self.denied {
            response["status"] = json!({"code": 422, "reason": "Invalid", "message": denied});
        }
        if let Some(patch) = &self.patch {
            let text = serde_json::to_vec(patch).expect("a patch has text keys");
            response["patchType"] = json!("JSONPatch");
            response["patch"] = json!(base64::engine::general_purpose::STANDARD.encode(text));
        }
        if !self.warnings.is_empty() {
            let warnings: Vec<_> = self
                .warnings
                .iter()
                .take(WARNINGS_MAX)
                .map(|text| cut(text))
                .collect();
            response["warnings"] = json!(warnings);
        }
        if let Some(Audit { key, text }) = &self.audit {
            response["auditAnnotations"] = json!({*key: text});
        }
        let review = json!({"apiVersion": API_VERSION, "kind": KIND, "response": response});
        serde_json::to_vec(&review).expect("a review has text keys")
    }
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(WARNING_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
