//! What the embedded cluster needs from the machine: distribution packages, root, a kernel.

use std::path::{Path, PathBuf};

/// A distribution package and the program (or folder) that shows it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Package {
    /// Its name in Debian and Ubuntu.
    pub name: &'static str,
    /// What it is needed for, in a few words.
    pub purpose: &'static str,
    needs: Needs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    Program(&'static str),
    Path(&'static str),
}

/// Where Debian puts the CNI plugins.
pub const CNI_BIN_DIR: &str = "/usr/lib/cni";

/// What a whole cluster needs.
pub const CLUSTER_PACKAGES: &[Package] = &[
    program("iproute2", "ip", "network namespaces and veth pairs"),
    program("util-linux", "nsenter", "entering network namespaces"),
    program("mount", "umount", "the kubelet's volumes"),
    program("runc", "runc", "running containers"),
    Package {
        name: "containernetworking-plugins",
        purpose: "pod networks",
        needs: Needs::Path("/usr/lib/cni/ptp"),
    },
    program("iptables", "iptables", "Services (kube-proxy)"),
    program("conntrack", "conntrack", "Services (kube-proxy)"),
    program("ipset", "ipset", "Services (kube-proxy)"),
    program("ethtool", "ethtool", "the kubelet"),
    program("socat", "socat", "kubectl port-forward"),
];

/// What building images and serving Git needs besides.
pub const BUILD_PACKAGES: &[Package] = &[
    program("git", "git", "serving test repositories"),
    program(
        "nftables",
        "nft",
        "comparing redirect rules with what nft reads, and dropping packets",
    ),
    program(
        "haproxy",
        "haproxy",
        "comparing what proxies make of odd requests",
    ),
    program(
        "nginx-light",
        "nginx",
        "comparing what proxies make of odd requests, and answering behind proxies",
    ),
    program("gcc", "cc", "linking Rust programs"),
    program("tcpdump", "tcpdump", "looking at pods' traffic"),
    Package {
        name: "ca-certificates",
        purpose: "fetching modules",
        needs: Needs::Path("/etc/ssl/certs"),
    },
];

/// What the benchmarks need besides: the peer, the application and the generator that proxies are measured with.
pub const BENCH_PACKAGES: &[Package] = &[
    program("iproute2", "ip", "network namespaces and veth pairs"),
    program("util-linux", "setpriv", "running proxies as their own user"),
    program("procps", "sysctl", "settings of network namespaces"),
    program("curl", "curl", "asking admin servers"),
    program("haproxy", "haproxy", "the peer"),
    program("nginx-light", "nginx", "the application behind the proxies"),
    program("wrk", "wrk", "generating load"),
];

/// LLVM's tool that merges profiles; it must be of the compiler's own LLVM.
pub const LLVM_PROFDATA: &str = "llvm-profdata-22";

/// What recording the sidecar's profile needs, besides.
pub const PGO_PACKAGES: &[Package] = &[program("llvm-22", LLVM_PROFDATA, "merging profiles")];

/// What counting instructions needs.
pub const COUNT_PACKAGES: &[Package] = &[
    program("iproute2", "ip", "network namespaces and veth pairs"),
    program("util-linux", "setpriv", "running proxies as their own user"),
    program("procps", "sysctl", "settings of network namespaces"),
    program("curl", "curl", "asking admin servers"),
    program("nginx-light", "nginx", "the application behind the proxies"),
    program("valgrind", "valgrind", "counting instructions"),
];

const fn program(name: &'static str, program: &'static str, purpose: &'static str) -> Package {
    Package {
        name,
        purpose,
        needs: Needs::Program(program),
    }
}

impl Package {
    /// Whether it (or something that does its job) is installed.
    pub fn is_installed(&self) -> bool {
        match self.needs {
            Needs::Program(program) => find_program(program).is_some(),
            Needs::Path(path) => Path::new(path).exists(),
        }
    }
}

/// Those of `packages` that are not installed.
pub fn missing(packages: &[Package]) -> Vec<Package> {
    packages
        .iter()
        .copied()
        .filter(|package| !package.is_installed())
        .collect()
}

/// Finds a program in PATH, or where root's programs are: PATH may lack the sbin folders.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}

/// Whether this process may make network namespaces, mounts and cgroups.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
