//! Whether a client may use a server, or a route of it.
//!
//! A [`Permit`] has no public constructor: whoever holds one was authorized. A server's authorizations hold for all
//! of its routes, a route's own for that route in addition; one that fits is enough.

use std::net::IpAddr;

use ahash::AHashSet;
use heddle_mesh::PeerId;
use linkerd2_proxy_api::inbound as proto;

use crate::{Invalid, Meta, invalid, net::Network};

/// What is known of a client when its connection is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its address.
    pub addr: IpAddr,
    /// What its TLS handshake proved.
    pub tls: ClientTls,
}

/// What a client's TLS handshake proved.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ClientTls {
    /// The connection is not the mesh's TLS.
    None,
    /// The mesh's TLS; the identity is absent when the client showed no certificate.
    Established(Option<PeerId>),
}

impl ClientTls {
    /// The identity that the client proved, if it proved any.
    pub fn identity(&self) -> Option<&PeerId> {
        match self {
            Self::Established(id) => id.as_ref(),
            Self::None => None,
        }
    }
}

/// Who may do something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorization {
    /// Where it comes from.
    pub meta: Meta,
    /// The client must be in one of these.
    pub networks: Vec<Network>,
    /// And have proved this.
    pub authentication: Authentication,
}

/// What a client must have proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authentication {
    /// Nothing.
    Unauthenticated,
    /// That it speaks the mesh's TLS.
    TlsUnauthenticated,
    /// That it is one of these.
    TlsAuthenticated {
        /// Whole names.
        identities: AHashSet<PeerId>,
        /// Ends of DNS names, each beginning with a dot; an empty one fits all names.
        suffixes: Vec<String>,
    },
}

/// Leave to open the local application's socket, with what metrics say about it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Permit {
    server: Meta,
    authorization: Meta,
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No authorization fits the client.
    #[error("client {addr} ({}) is not authorized on server {server}", tls_text(.tls))]
    Unauthorized {
        /// The client's address.
        addr: IpAddr,
        /// What it proved.
        tls: ClientTls,
        /// The server's name.
        server: String,
    },
}

fn tls_text(tls: &ClientTls) -> &str {
    match tls {
        ClientTls::None => "not meshed",
        ClientTls::Established(None) => "meshed, without identity",
        ClientTls::Established(Some(id)) => id.as_str(),
    }
}

impl Permit {
    /// The server that the permit is for.
    pub fn server(&self) -> &Meta {
        &self.server
    }

    /// The authorization that gave it.
    pub fn authorization(&self) -> &Meta {
        &self.authorization
    }
}

impl Authorization {
    /// Whether the authorization fits the client.
    pub fn fits(&self, client: &Client) -> bool {
        self.networks.iter().any(|network| network.contains(client.addr))
            && self.authentication.fits(&client.tls)
    }
}

impl Authentication {
    /// Any identity of the mesh.
    pub fn any_identity() -> Self {
        Self::TlsAuthenticated {
            identities: AHashSet::new(),
            suffixes: vec![String::new()],
        }
    }

    fn fits(&self, tls: &ClientTls) -> bool {
        match (self, tls) {
            (Self::Unauthenticated, _) | (Self::TlsUnauthenticated, ClientTls::Established(_)) => true,
            (Self::TlsAuthenticated { identities, suffixes }, ClientTls::Established(Some(id))) => {
                identities.contains(id) || suffixes.iter().any(|suffix| fits_suffix(id, suffix))
            }
            _ => false,
        }
    }
}

/// A SPIFFE ID's path is whatever its authority likes; only a DNS name's end says who gave it.
fn fits_suffix(id: &PeerId, suffix: &str) -> bool {
    suffix.is_empty() || id.dns().is_some_and(|name| name.as_str().ends_with(suffix))
}

/// Judges a client by a server's and, for HTTP, a route's authorizations.
pub(crate) fn judge<'a>(
    server: &Meta,
    authorizations: impl IntoIterator<Item = &'a Authorization>,
    client: &Client,
) -> Result<Permit, Denied> {
    match authorizations.into_iter().find(|one| one.fits(client)) {
        Some(found) => Ok(Permit {
            server: server.clone(),
            authorization: found.meta.clone(),
        }),
        None => Err(Denied::Unauthorized {
            addr: client.addr,
            tls: client.tls.clone(),
            server: server.name().to_owned(),
        }),
    }
}

impl TryFrom<proto::Authz> for Authorization {
    type Error = Invalid;

    fn try_from(authz: proto::Authz) -> Result<Self, Invalid> {
        let proto::Authz {
            networks,
            authentication,
            labels,
            metadata,
        } = authz;
        let meta = match metadata {
            Some(meta) => meta
                .try_into()
                .map_err(|error: Invalid| error.within("metadata"))?,
            // Controllers older than the metadata field send labels alone.
            None => labels_meta(&labels).ok_or_else(|| Invalid::missing("metadata"))?,
        };
        if networks.is_empty() {
            return Err(Invalid::new("networks", "must have at least one network"));
        }
        Ok(Self {
            meta,
            networks: invalid::each("networks", networks, Network::try_from)?,
            authentication: authentication
                .ok_or_else(|| Invalid::missing("authentication"))?
                .try_into()?,
        })
    }
}

/// The resource that `group`, `kind` and `name` labels describe.
pub(crate) fn labels_meta(labels: &std::collections::HashMap<String, String>) -> Option<Meta> {
    let name = labels.get("name")?;
    match labels.get("kind").map_or("", String::as_str) {
        "" | "default" => Some(Meta::default_named(name.strip_prefix("default:").unwrap_or(name))),
        kind => Some(Meta::Resource(std::sync::Arc::new(crate::meta::Resource {
            group: labels.get("group").cloned().unwrap_or_default(),
            kind: kind.to_owned(),
            name: name.clone(),
            ..Default::default()
        }))),
    }
}

impl TryFrom<proto::Authn> for Authentication {
    type Error = Invalid;

    fn try_from(authn: proto::Authn) -> Result<Self, Invalid> {
        use proto::authn::{Permit, permit_mesh_tls::Clients};
        let tls = match authn
            .permit
            .ok_or_else(|| Invalid::missing("authentication.permit"))?
        {
            Permit::Unauthenticated(_) => return Ok(Self::Unauthenticated),
            Permit::MeshTls(tls) => tls,
        };
        match tls
            .clients
            .ok_or_else(|| Invalid::missing("authentication.mesh_tls.clients"))?
        {
            Clients::Unauthenticated(_) => Ok(Self::TlsUnauthenticated),
            Clients::Identities(clients) => {
                let parse =
                    |id: proto::Identity| id.name.parse().map_err(|error| Invalid::new("identities", error));
                let identities = clients
                    .identities
                    .into_iter()
                    .map(parse)
                    .collect::<Result<_, _>>()?;
                let suffix = |suffix: proto::IdentitySuffix| match suffix.parts.is_empty() {
                    true => String::new(),
                    false => format!(".{}", suffix.parts.join(".").to_ascii_lowercase()),
                };
                Ok(Self::TlsAuthenticated {
                    identities,
                    suffixes: clients.suffixes.into_iter().map(suffix).collect(),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> PeerId {
        name.parse().expect("a name")
    }

    fn client(addr: &str, tls: ClientTls) -> Client {
        Client {
            addr: addr.parse().expect("an address"),
            tls,
        }
    }

    fn authz(networks: &[&str], authentication: Authentication) -> Authorization {
        let networks = networks
            .iter()
            .map(|net| Network::from(net.parse::<ipnet::IpNet>().expect("a network")));
        Authorization {
            meta: Meta::default_named("test"),
            networks: networks.collect(),
            authentication,
        }
    }

    #[test]
    fn identities_and_suffixes_need_a_proven_name() {
        let one = authz(
            &["0.0.0.0/0"],
            Authentication::TlsAuthenticated {
                identities: [id("a.ns.test"), id("spiffe://d/a")].into_iter().collect(),
                suffixes: vec![".trusted.test".into()],
            },
        );
        for (tls, want) in [
            (ClientTls::None, false),
            (ClientTls::Established(None), false),
            (ClientTls::Established(Some(id("A.ns.test"))), true),
            (ClientTls::Established(Some(id("xa.ns.test"))), false),
            (ClientTls::Established(Some(id("b.trusted.test"))), true),
            (ClientTls::Established(Some(id("untrusted.test"))), false),
            (ClientTls::Established(Some(id("trusted.test"))), false),
            (ClientTls::Established(Some(id("spiffe://d/a"))), true),
            (ClientTls::Established(Some(id("spiffe://d/A"))), false),
            (
                ClientTls::Established(Some(id("spiffe://d/b.trusted.test"))),
                false,
            ),
        ] {
            assert_eq!(one.fits(&client("10.0.0.1", tls.clone())), want, "{tls:?}");
        }
        let any = authz(&["0.0.0.0/0"], Authentication::any_identity());
        assert!(any.fits(&client("10.0.0.1", ClientTls::Established(Some(id("x"))))));
        assert!(any.fits(&client(
            "10.0.0.1",
            ClientTls::Established(Some(id("spiffe://d/x")))
        )));
        assert!(!any.fits(&client("10.0.0.1", ClientTls::Established(None))));
    }

    #[test]
    fn networks_have_exceptions_and_mapped_addresses_are_ipv4() {
        let mut one = authz(&["10.0.0.0/8"], Authentication::Unauthenticated);
        one.networks[0]
            .except
            .push("10.9.0.0/16".parse().expect("a network"));
        for (addr, want) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("10.9.1.1", false),
            ("192.168.0.1", false),
        ] {
            assert_eq!(one.fits(&client(addr, ClientTls::None)), want, "{addr}");
        }
    }

    #[test]
    fn nobody_is_allowed_without_an_authorization() {
        let denied = judge(
            &Meta::default_named("web"),
            [],
            &client("10.0.0.1", ClientTls::None),
        );
        assert_eq!(
            denied.expect_err("no authorization").to_string(),
            "client 10.0.0.1 (not meshed) is not authorized on server web"
        );
    }

    #[test]
    fn an_authorization_needs_networks_authentication_and_metadata() {
        let whole = proto::Authz {
            networks: vec![proto::Network {
                net: Some("0.0.0.0/0".parse::<ipnet::IpNet>().expect("a network").into()),
                except: vec![],
            }],
            authentication: Some(proto::Authn {
                permit: Some(proto::authn::Permit::Unauthenticated(Default::default())),
            }),
            labels: Default::default(),
            metadata: Some(linkerd2_proxy_api::meta::Metadata {
                kind: Some(linkerd2_proxy_api::meta::metadata::Kind::Default("x".into())),
            }),
        };
        assert!(Authorization::try_from(whole.clone()).is_ok());
        for broken in [
            proto::Authz {
                networks: vec![],
                ..whole.clone()
            },
            proto::Authz {
                authentication: None,
                ..whole.clone()
            },
            proto::Authz {
                authentication: Some(proto::Authn { permit: None }),
                ..whole.clone()
            },
            proto::Authz {
                metadata: None,
                ..whole.clone()
            },
        ] {
            assert!(Authorization::try_from(broken).is_err());
        }
    }
}
