//! AdmissionReview v1: what the API server asks, and the answer; no decisions here.

use std::collections::BTreeMap;

use serde::{
    Deserialize, Serialize,
    de::{DeserializeOwned, IgnoredAny},
};
use serde_json::value::RawValue;

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";
/// The API server cuts longer warnings, and drops all of them beyond 4096 bytes.
const WARNING_BYTES_MAX: usize = 256;
const WARNINGS_MAX: usize = 8;
/// An answer without its patch, mostly.
const ANSWER_BYTES_EXPECTED: usize = 512;

/// The question. Its object is read later: its type is not known before.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Request<'a> {
    pub(crate) uid: String,
    pub(crate) kind: Kind,
    #[serde(default)]
    pub(crate) namespace: String,
    #[serde(default)]
    pub(crate) name: String,
    pub(crate) operation: String,
    #[serde(default)]
    pub(crate) dry_run: Option<bool>,
    #[serde(borrow, default)]
    object: Option<&'a RawValue>,
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
    /// A JSON patch, as text.
    pub(crate) patch: Option<Vec<u8>>,
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

impl<'a> Request<'a> {
    /// Reads the question.
    pub(crate) fn read(body: &'a [u8]) -> Result<Self, ReviewError> {
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

    /// Reads the object that the question is about.
    pub(crate) fn object<T: DeserializeOwned>(&self, kind: &'static str) -> Result<T, ReviewError> {
        let text = self.object.map_or("null", RawValue::get);
        serde_json::from_str(text).map_err(|source| ReviewError::Object { kind, source })
    }
}

impl Answer {
    /// The answer as the API server reads it.
    pub(crate) fn to_json(&self, uid: &str) -> Vec<u8> {
        use base64::Engine as _;
        let Self {
            denied,
            patch,
            warnings,
            audit,
        } = self;
        let encode = |patch| base64::engine::general_purpose::STANDARD.encode(patch);
        let review = Review {
            api_version: API_VERSION,
            kind: KIND,
            response: Response {
                uid,
                allowed: denied.is_none(),
                status: denied.as_deref().map(|message| Status {
                    code: 422,
                    reason: "Invalid",
                    message,
                }),
                patch_type: patch.as_ref().map(|_| "JSONPatch"),
                patch: patch.as_ref().map(encode),
                warnings: warnings.iter().take(WARNINGS_MAX).map(|text| cut(text)).collect(),
                audit_annotations: audit
                    .iter()
                    .map(|Audit { key, text }| (*key, &text[..]))
                    .collect(),
            },
        };
        let patch_bytes = review.response.patch.as_ref().map_or(0, String::len);
        let mut text = Vec::with_capacity(patch_bytes + ANSWER_BYTES_EXPECTED);
        serde_json::to_writer(&mut text, &review).expect("a review has text keys");
        text
    }
}

/// The review as it is written.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Review<'a> {
    api_version: &'static str,
    kind: &'static str,
    response: Response<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    audit_annotations: BTreeMap<&'static str, &'a str>,
}

#[derive(Serialize)]
struct Status<'a> {
    code: u16,
    reason: &'static str,
    message: &'a str,
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(WARNING_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
