//! What is done to requests and responses.

use std::borrow::Cow;

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Something done to requests or responses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all_fields = "camelCase")]
pub enum Filter {
    /// Changes request headers.
    RequestHeaderModifier {
        /// The changes.
        request_header_modifier: HeaderModifier,
    },
    /// Changes response headers.
    ResponseHeaderModifier {
        /// The changes.
        response_header_modifier: HeaderModifier,
    },
    /// Answers with a redirect.
    RequestRedirect {
        /// Where to.
        request_redirect: RequestRedirect,
    },
}

/// [`Filter`] as a structural schema says it: a tag, and one of three fields.
#[derive(Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.type == 'RequestHeaderModifier') == has(self.requestHeaderModifier)")
        .message("requestHeaderModifier must be given with type RequestHeaderModifier, and only then"),
    validation = Rule::new("(self.type == 'ResponseHeaderModifier') == has(self.responseHeaderModifier)")
        .message("responseHeaderModifier must be given with type ResponseHeaderModifier, and only then"),
    validation = Rule::new("(self.type == 'RequestRedirect') == has(self.requestRedirect)")
        .message("requestRedirect must be given with type RequestRedirect, and only then")
)]
struct FilterSchema {
    /// What is done. The field of the same name says how.
    r#type: FilterType,
    /// Changes request headers.
    request_header_modifier: Option<HeaderModifier>,
    /// Changes response headers.
    response_header_modifier: Option<HeaderModifier>,
    /// Answers with a redirect instead of forwarding the request.
    request_redirect: Option<RequestRedirect>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
enum FilterType {
    RequestHeaderModifier,
    ResponseHeaderModifier,
    RequestRedirect,
}

impl JsonSchema for Filter {
    fn schema_name() -> Cow<'static, str> {
        "Filter".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        FilterSchema::json_schema(generator)
    }
}

/// Changes to headers. Names are compared without regard to case.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeaderModifier {
    /// Headers to set, in place of any values they have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub set: Vec<HttpHeader>,
    /// Headers to add, beside any values they have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub add: Vec<HttpHeader>,
    /// Names of headers to remove.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256)))]
    pub remove: Vec<String>,
}

/// A header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpHeader {
    /// The name.
    #[schemars(
        length(min = 1, max = 256),
        regex(pattern = r"^[A-Za-z0-9!#$%&'*+\-.^_`|~]+$")
    )]
    pub name: String,
    /// The value.
    #[schemars(length(min = 1, max = 4096))]
    pub value: String,
}

/// A redirect: the request's own URL with some parts replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestRedirect {
    /// The new scheme.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Scheme>,
    /// The new host name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub hostname: Option<String>,
    /// The new path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathModifier>,
    /// The new port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// The response's status code: 301, 302, 303, 307 or 308. Absent: 302.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", extend("enum" = [301, 302, 303, 307, 308]))]
    pub status_code: Option<u16>,
}

/// A URL's scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Scheme {
    /// http.
    Http,
    /// https.
    Https,
}

/// A change to a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all_fields = "camelCase")]
pub enum PathModifier {
    /// Replaces the whole path.
    ReplaceFullPath {
        /// The new path.
        replace_full_path: String,
    },
    /// Replaces the prefix that the rule matched.
    ReplacePrefixMatch {
        /// The new prefix.
        replace_prefix_match: String,
    },
}

impl JsonSchema for PathModifier {
    fn schema_name() -> Cow<'static, str> {
        "PathModifier".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "description": "A change to the path.",
            "required": ["type"],
            "properties": {
                "type": {
                    "type": "string",
                    "enum": ["ReplaceFullPath", "ReplacePrefixMatch"],
                    "description": "Whether the whole path is replaced, or the prefix that the rule matched.",
                },
                "replaceFullPath": {"type": "string", "maxLength": 1024, "description": "The new path."},
                "replacePrefixMatch": {"type": "string", "maxLength": 1024, "description": "The new prefix."},
            },
            "x-kubernetes-validations": [
                {
                    "rule": "(self.type == 'ReplaceFullPath') == has(self.replaceFullPath)",
                    "message": "replaceFullPath must be given with type ReplaceFullPath, and only then",
                },
                {
                    "rule": "(self.type == 'ReplacePrefixMatch') == has(self.replacePrefixMatch)",
                    "message": "replacePrefixMatch must be given with type ReplacePrefixMatch, and only then",
                },
                {
                    "rule": "(!has(self.replaceFullPath) || self.replaceFullPath.startsWith('/')) && (!has(self.replacePrefixMatch) || self.replacePrefixMatch.startsWith('/'))",
                    "message": "a path must begin with /",
                },
            ],
        })
    }
}
