//! Default policies: what may connect to a port that no Server selects.

use std::{fmt, str::FromStr};

/// The policy of ports that nothing more specific governs; also a Server's `accessPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DefaultPolicy {
    /// Clients are let in.
    Allow {
        /// Only those with a mesh identity.
        authenticated_only: bool,
        /// Only those on the cluster's networks.
        cluster_only: bool,
    },
    /// Nobody is let in.
    Deny,
    /// Everybody is let in, and logs and metrics say that it was by `audit`.
    Audit,
}

/// A text that names no default policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a policy: expected all-unauthenticated, all-authenticated, cluster-unauthenticated, cluster-authenticated, deny or audit"
)]
pub struct DefaultPolicyError(pub String);

impl DefaultPolicy {
    /// The name as annotations and metric labels write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Allow {
                authenticated_only: false,
                cluster_only: false,
            } => "all-unauthenticated",
            Self::Allow {
                authenticated_only: true,
                cluster_only: false,
            } => "all-authenticated",
            Self::Allow {
                authenticated_only: false,
                cluster_only: true,
            } => "cluster-unauthenticated",
            Self::Allow {
                authenticated_only: true,
                cluster_only: true,
            } => "cluster-authenticated",
            Self::Deny => "deny",
            Self::Audit => "audit",
        }
    }
}

impl fmt::Display for DefaultPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DefaultPolicy {
    type Err = DefaultPolicyError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let allow = |authenticated_only, cluster_only| Self::Allow {
            authenticated_only,
            cluster_only,
        };
        Ok(match s {
            "all-unauthenticated" => allow(false, false),
            "all-authenticated" => allow(true, false),
            "cluster-unauthenticated" => allow(false, true),
            "cluster-authenticated" => allow(true, true),
            "deny" => Self::Deny,
            "audit" => Self::Audit,
            _ => return Err(DefaultPolicyError(s.to_owned())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_reads_back_as_it_is_written() {
        for name in [
            "all-unauthenticated",
            "all-authenticated",
            "cluster-unauthenticated",
            "cluster-authenticated",
            "deny",
            "audit",
        ] {
            assert_eq!(
                name.parse::<DefaultPolicy>().expect("a policy's name").name(),
                name
            );
        }
        assert!("allow".parse::<DefaultPolicy>().is_err());
    }
}
