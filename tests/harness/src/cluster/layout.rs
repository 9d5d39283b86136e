//! Names and places that follow from a cluster's name alone, so that `down` finds everything without asking anyone.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use sha2::{Digest, Sha256};

use crate::host;

/// Longest name: with the prefix it must still fit a host name and a socket path.
const NAME_MAX_CHARS: usize = 32;

/// Prefix of everything on the host that carries a cluster's name.
pub(super) const PREFIX: &str = "heddle-cluster-";

/// Environment variable that every process of a cluster carries, its value the state folder.
pub(super) const MARKER: &str = "HEDDLE_CLUSTER_STATE";

/// A cluster's checked name and its state folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    name: String,
    clusters: PathBuf,
}

impl Layout {
    /// Checks that `name` is a DNS label of bounded length.
    pub(super) fn new(name: &str) -> Result<Self> {
        let label = name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        let ends = !name.starts_with('-') && !name.ends_with('-');
        if name.is_empty() || name.len() > NAME_MAX_CHARS || !label || !ends {
            bail!(
                "`{name}` cannot name a cluster: expected 1 to {NAME_MAX_CHARS} lower-case letters, digits and inner hyphens"
            );
        }
        Ok(Self {
            name: name.to_owned(),
            clusters: clusters_dir(),
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Holds all clusters, and the lock on the assignment of slots.
    pub(super) fn clusters(&self) -> &Path {
        &self.clusters
    }

    /// Everything the cluster keeps.
    pub(super) fn state(&self) -> PathBuf {
        self.clusters.join(&self.name)
    }

    pub(super) fn at(&self, relative: &str) -> PathBuf {
        self.state().join(relative)
    }

    /// Held while the cluster goes up or down. Lies beside the state, because `down` removes that.
    pub(super) fn lock(&self) -> PathBuf {
        self.clusters.join(format!(".{}.lock", self.name))
    }

    pub(super) fn record(&self) -> PathBuf {
        self.at("cluster.json")
    }

    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.at("kubeconfig")
    }

    pub(super) fn audit_log(&self) -> PathBuf {
        self.at("log/audit.log")
    }

    pub(super) fn netns(&self) -> String {
        format!("{PREFIX}{}", self.name)
    }

    pub(super) fn netns_path(&self) -> PathBuf {
        Path::new("/run/netns").join(self.netns())
    }

    /// The cluster's folder in each cgroup hierarchy.
    pub(super) fn cgroup(&self) -> String {
        format!("{PREFIX}{}", self.name)
    }

    /// The pod network's name; the CNI library names files in its global cache for it.
    pub(super) fn cni_network(&self) -> String {
        format!("{PREFIX}{}", self.name)
    }

    /// The container runtime's network configurations.
    pub(super) fn cni_net_dir(&self) -> PathBuf {
        self.at("cni")
    }

    /// CNI plugins that were put on this node alone; those of the machine come after them.
    pub(super) fn cni_bin_dir(&self) -> PathBuf {
        self.at("cni-bin")
    }

    /// The host's end of the veth pair: at most 15 characters, whatever the name.
    pub(super) fn host_link(&self) -> String {
        format!("hd-{}", &self.digest()[..8])
    }

    /// Sockets of container shims, whose paths must be short.
    pub(super) fn shim_sockets(&self) -> PathBuf {
        Path::new("/run/heddle").join(&self.digest()[..16])
    }

    fn digest(&self) -> String {
        hex::encode(Sha256::digest(self.state().as_os_str().as_encoded_bytes()))
    }
}

/// Where clusters keep their state: `HEDDLE_STATE`, or the system's place for root and the user's place for others.
pub(super) fn clusters_dir() -> PathBuf {
    let variable = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let state = variable("HEDDLE_STATE").unwrap_or_else(|| {
        if host::is_root() {
            return PathBuf::from("/var/lib/heddle");
        }
        let user =
            variable("XDG_STATE_HOME").or_else(|| variable("HOME").map(|home| home.join(".local/state")));
        user.unwrap_or_else(std::env::temp_dir).join("heddle")
    });
    state.join("clusters")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_state_folder_are_refused() {
        for name in [
            "",
            "..",
            "a/b",
            "A",
            "-a",
            "a-",
            "a b",
            &"a".repeat(NAME_MAX_CHARS + 1),
        ] {
            assert!(Layout::new(name).is_err(), "{name}");
        }
        assert!(Layout::new("heddle").is_ok() && Layout::new("e2e-2").is_ok());
    }

    #[test]
    fn names_given_to_the_kernel_fit() {
        let layout = Layout::new(&"n".repeat(NAME_MAX_CHARS)).unwrap();
        assert!(layout.host_link().len() <= 15);
        // A shim's socket adds a slash and 64 characters; sockaddr_un holds 108 with the final zero.
        assert!(layout.shim_sockets().as_os_str().len() + 65 < 107);
    }
}
