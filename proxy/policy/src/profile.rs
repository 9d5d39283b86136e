//! What the destination service says of an address: the service behind it, or the endpoint that it is.

use std::collections::HashMap;

use linkerd2_proxy_api::destination as proto;

use crate::{Endpoint, Invalid};

/// A destination profile. Routes of ServiceProfiles are not taken over; policy routes decide.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// `service.namespace.svc.domain` with its port, when the address is a service's.
    pub fully_qualified_name: Option<String>,
    /// Whether the bytes must not be looked into.
    pub opaque: bool,
    /// The endpoint, when the address is a pod's.
    pub endpoint: Option<Endpoint>,
}

impl TryFrom<proto::DestinationProfile> for Profile {
    type Error = Invalid;

    fn try_from(profile: proto::DestinationProfile) -> Result<Self, Invalid> {
        let proto::DestinationProfile {
            fully_qualified_name,
            opaque_protocol,
            endpoint,
            ..
        } = profile;
        Ok(Self {
            fully_qualified_name: (!fully_qualified_name.is_empty()).then_some(fully_qualified_name),
            opaque: opaque_protocol,
            endpoint: endpoint
                .map(|one| {
                    Endpoint::from_proto(one, &HashMap::new()).map_err(|error| error.within("endpoint"))
                })
                .transpose()?,
        })
    }
}
