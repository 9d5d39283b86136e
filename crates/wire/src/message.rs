//! The messages of the extension.

use linkerd2_proxy_api::{
    http_route::ResponseHeaderModifier,
    meta::Metadata,
    outbound::{Backend, OutboundPolicy, ProxyProtocol},
};

use crate::{Extension, WireError, decode, encode};

/// The extension's field number in `OutboundPolicy`: high enough that Linkerd will not use it.
pub const EXTENSION_FIELD: u32 = 1000;

/// `OutboundPolicy` with Heddle's extension. Built of checked parts or taken from the wire, where it is checked by
/// [`PolicyMessage::into_parts`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct PolicyMessage {
    #[prost(message, optional, tag = "1")]
    protocol: Option<ProxyProtocol>,
    #[prost(message, optional, tag = "2")]
    metadata: Option<Metadata>,
    #[prost(message, optional, tag = "1000")]
    extension: Option<ExtensionMessage>,
}

impl PolicyMessage {
    /// The message of a policy and its extension.
    pub fn new(policy: OutboundPolicy, extension: &Extension) -> Self {
        let OutboundPolicy { protocol, metadata } = policy;
        let extension = (!extension.is_empty()).then(|| encode::extension(extension));
        Self {
            protocol,
            metadata,
            extension,
        }
    }

    /// The policy, as every proxy sees it, and the extension, checked.
    ///
    /// # Errors
    /// When the extension breaks a rule of this crate. The policy itself is not looked into any further than that.
    pub fn into_parts(self) -> Result<(OutboundPolicy, Extension), WireError> {
        let Self {
            protocol,
            metadata,
            extension,
        } = self;
        let policy = OutboundPolicy { protocol, metadata };
        let extension = match extension {
            None => Extension::default(),
            Some(extension) => decode::extension(extension, &policy)?,
        };
        Ok((policy, extension))
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ExtensionMessage {
    #[prost(message, repeated, tag = "1")]
    pub(crate) rules: Vec<RuleMessage>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) balancers: Vec<BalancerMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct RuleMessage {
    #[prost(uint32, tag = "1")]
    pub(crate) route: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) rule: u32,
    #[prost(uint32, optional, tag = "3")]
    pub(crate) backend: Option<u32>,
    #[prost(message, optional, tag = "4")]
    pub(crate) rewrite: Option<RewriteMessage>,
    #[prost(message, repeated, tag = "5")]
    pub(crate) mirrors: Vec<MirrorMessage>,
    #[prost(message, optional, tag = "6")]
    pub(crate) session: Option<PersistenceMessage>,
    #[prost(message, optional, tag = "7")]
    pub(crate) response_headers: Option<ResponseHeaderModifier>,
    #[prost(message, repeated, tag = "8")]
    pub(crate) grpc_matches: Vec<GrpcMatchMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct RewriteMessage {
    #[prost(string, optional, tag = "1")]
    pub(crate) host: Option<String>,
    #[prost(oneof = "PathMessage", tags = "2, 3")]
    pub(crate) path: Option<PathMessage>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum PathMessage {
    #[prost(string, tag = "2")]
    Full(String),
    #[prost(string, tag = "3")]
    Prefix(String),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct MirrorMessage {
    #[prost(message, optional, tag = "1")]
    pub(crate) backend: Option<Backend>,
    #[prost(uint32, tag = "2")]
    pub(crate) numerator: u32,
    #[prost(uint32, tag = "3")]
    pub(crate) denominator: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct GrpcMatchMessage {
    #[prost(uint32, tag = "1")]
    pub(crate) index: u32,
    #[prost(string, optional, tag = "2")]
    pub(crate) service: Option<String>,
    #[prost(string, optional, tag = "3")]
    pub(crate) method: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct BalancerMessage {
    #[prost(string, tag = "1")]
    pub(crate) path: String,
    #[prost(oneof = "AffinityMessage", tags = "2, 3")]
    pub(crate) affinity: Option<AffinityMessage>,
    #[prost(message, optional, tag = "4")]
    pub(crate) limits: Option<LimitsMessage>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum AffinityMessage {
    #[prost(message, tag = "2")]
    Persistence(PersistenceMessage),
    #[prost(message, tag = "3")]
    Hash(HashMessage),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PersistenceMessage {
    #[prost(enumeration = "CarrierMessage", tag = "1")]
    pub(crate) carrier: i32,
    #[prost(string, tag = "2")]
    pub(crate) name: String,
    #[prost(message, optional, tag = "3")]
    pub(crate) idle_timeout: Option<prost_types::Duration>,
    #[prost(message, optional, tag = "4")]
    pub(crate) absolute_timeout: Option<prost_types::Duration>,
    #[prost(bool, tag = "5")]
    pub(crate) permanent: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HashMessage {
    #[prost(enumeration = "HashKeyMessage", tag = "1")]
    pub(crate) key: i32,
    #[prost(string, tag = "2")]
    pub(crate) name: String,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct LimitsMessage {
    #[prost(uint32, tag = "1")]
    pub(crate) connections: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) requests: u32,
    #[prost(uint32, tag = "3")]
    pub(crate) pending_requests: u32,
    #[prost(uint32, tag = "4")]
    pub(crate) endpoint_connections: u32,
    #[prost(uint32, tag = "5")]
    pub(crate) endpoint_requests: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum CarrierMessage {
    Cookie = 0,
    Header = 1,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum HashKeyMessage {
    Source = 0,
    Cookie = 1,
    Header = 2,
}
