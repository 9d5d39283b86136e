//! Labels in Prometheus' text form, made once per series.

use std::{
    fmt::{self, Write as _},
    net::SocketAddr,
    sync::Arc,
};

use heddle_mesh::PeerId;
use heddle_proxy_policy::{ClientTls, Endpoint, Meta};

/// A label's value is cut to this length: names of services and identities are shorter.
const VALUE_BYTES_MAX: usize = 512;

/// Labels as text, without the braces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Labels(String);

/// Why a client's TLS does not end at this proxy. Says nothing of a client that is meshed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Unmeshed {
    /// The port's policy has nothing looked at.
    PortSkipped,
    /// Its first bytes are no TLS, or name no server.
    NoClientHello,
    /// It speaks the application's own TLS, for this server name.
    Passthru(Arc<str>),
}

impl Unmeshed {
    /// Linkerd's word for it where server names are not told.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::PortSkipped => "port_skipped",
            Self::NoClientHello => "no_tls_from_remote",
            Self::Passthru(_) => "opaque",
        }
    }
}

impl Labels {
    pub(crate) fn direction(direction: &str) -> Self {
        Self::default().with("direction", direction)
    }

    pub(crate) fn overflow() -> Self {
        Self::default().with("overflow", "true")
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[must_use]
    pub(crate) fn with(mut self, name: &str, value: impl fmt::Display) -> Self {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        self.0.push_str(name);
        self.0.push_str("=\"");
        // Writing to a String cannot fail.
        let _ = write!(
            Escaped {
                out: &mut self.0,
                left: VALUE_BYTES_MAX
            },
            "{value}"
        );
        self.0.push('"');
        self
    }

    #[must_use]
    pub(crate) fn target_addr(self, addr: SocketAddr) -> Self {
        self.with("target_addr", addr)
            .with("target_ip", addr.ip())
            .with("target_port", addr.port())
    }

    /// How an inbound client is known.
    #[must_use]
    pub(crate) fn client_tls(self, tls: &ClientTls, unmeshed: &Unmeshed) -> Self {
        match tls {
            ClientTls::None => match unmeshed {
                Unmeshed::Passthru(name) => self.with("tls", "opaque").with("sni", name),
                other => self
                    .with("tls", "no_identity")
                    .with("no_tls_reason", other.reason()),
            },
            ClientTls::Established(None) => self.with("tls", "true").with("client_id", ""),
            ClientTls::Established(Some(id)) => self.with("tls", "true").with("client_id", id),
        }
    }

    /// How an outbound server is known.
    #[must_use]
    pub(crate) fn server_tls(self, server: Result<&PeerId, &str>) -> Self {
        match server {
            Ok(id) => self.with("tls", "true").with("server_id", id),
            Err(reason) => self.with("tls", "no_identity").with("no_tls_reason", reason),
        }
    }

    /// The endpoint's own labels, with Linkerd's prefix.
    #[must_use]
    pub(crate) fn endpoint(mut self, endpoint: &Endpoint) -> Self {
        for (name, value) in &endpoint.labels {
            self = self.with(&format!("dst_{name}"), value);
        }
        self
    }

    /// Group, kind and name of a resource under a prefix.
    #[must_use]
    pub(crate) fn resource(self, prefix: &str, meta: &Meta) -> Self {
        self.with(&format!("{prefix}_group"), meta.group())
            .with(&format!("{prefix}_kind"), meta.kind())
            .with(&format!("{prefix}_name"), meta.name())
    }

    /// These labels, and then the others.
    #[must_use]
    pub(crate) fn and(mut self, others: &Self) -> Self {
        if !self.0.is_empty() && !others.0.is_empty() {
            self.0.push(',');
        }
        self.0.push_str(&others.0);
        self
    }

    /// A route as Gateway API names it, under a prefix.
    #[must_use]
    pub(crate) fn reference(self, prefix: &str, meta: &Meta) -> Self {
        self.with(&format!("{prefix}_group"), meta.group())
            .with(&format!("{prefix}_kind"), meta.kind())
            .with(&format!("{prefix}_namespace"), meta.namespace())
            .with(&format!("{prefix}_name"), meta.name())
    }

    /// A Service or another parent or backend, under a prefix. Linkerd's port of what has none is empty.
    #[must_use]
    pub(crate) fn port_reference(self, prefix: &str, meta: &Meta) -> Self {
        let port = match meta.port() {
            0 => String::new(),
            port => port.to_string(),
        };
        self.reference(prefix, meta)
            .with(&format!("{prefix}_port"), port)
            .with(&format!("{prefix}_section_name"), meta.section())
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

struct Escaped<'o> {
    out: &'o mut String,
    left: usize,
}

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for char in text.chars() {
            if self.left < char.len_utf8() {
                self.left = 0;
                break;
            }
            self.left -= char.len_utf8();
            match char {
                '\\' => self.out.push_str("\\\\"),
                '"' => self.out.push_str("\\\""),
                '\n' => self.out.push_str("\\n"),
                _ => self.out.push(char),
            }
        }
        Ok(())
    }
}
