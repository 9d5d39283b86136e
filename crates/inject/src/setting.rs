//! The small closed types that settings are made of: each is read from exactly the texts that it prints.

use std::{fmt, str::FromStr, time::Duration};

use heddle_mesh::duration::{self, DurationError};
use serde::{Deserialize, Serialize};

/// Declares an enum that is read from, and printed as, one of a few texts.
macro_rules! choices {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[derive(Default)]
        pub enum $name { $($(#[$variant_doc])* #[serde(rename = $text)] $variant,)+ }

        impl $name {
            /// The text form.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// All text forms, for messages.
            pub(crate) const EXPECTED: &str = concat!("one of" $(, " `", $text, "`")+);
        }

        impl FromStr for $name {
            type Err = &'static str;

            fn from_str(s: &str) -> Result<Self, Self::Err> {
                match s { $($text => Ok(Self::$variant),)+ _ => Err(Self::EXPECTED) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

choices! {
    /// When the kubelet pulls an image.
    PullPolicy {
        /// When the node lacks it.
        #[default]
        IfNotPresent = "IfNotPresent",
        /// At every start.
        Always = "Always",
        /// Never.
        Never = "Never",
    }
}

choices! {
    /// Form of a log line.
    LogFormat {
        /// For people.
        #[default]
        Plain = "plain",
        /// For machines.
        Json = "json",
    }
}

choices! {
    /// Whether HTTP headers may appear in debug logs.
    LogHttpHeaders {
        /// They may not.
        #[default]
        Off = "off",
        /// They may, secrets included.
        Insecure = "insecure",
    }
}

choices! {
    /// Form of the access log.
    AccessLog {
        /// Apache's common log format.
        #[default]
        Apache = "apache",
        /// One JSON object per request.
        Json = "json",
    }
}

choices! {
    /// Policy for connections that no Server selects.
    InboundPolicy {
        /// Everyone may connect.
        #[default]
        AllUnauthenticated = "all-unauthenticated",
        /// Everyone in the mesh may connect.
        AllAuthenticated = "all-authenticated",
        /// Everyone in the cluster's networks may connect.
        ClusterUnauthenticated = "cluster-unauthenticated",
        /// Everyone in the mesh and in the cluster's networks may connect.
        ClusterAuthenticated = "cluster-authenticated",
        /// Nobody may connect.
        Deny = "deny",
        /// Everyone may connect; what a policy would have denied is logged and counted.
        Audit = "audit",
    }
}

/// A duration in Linkerd's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timeout(#[serde(with = "duration::text")] pub Duration);

impl Timeout {
    pub(crate) const fn from_ms(ms: u64) -> Self {
        Self(Duration::from_millis(ms))
    }
}

impl FromStr for Timeout {
    type Err = DurationError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        duration::parse(s).map(Self)
    }
}

impl fmt::Display for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&duration::format(self.0))
    }
}
