//! The Go programs that a cluster is made of, built once per machine and version.
//!
//! In go the modules under `tests/tools`, each a `go.mod` that pins one project; out come paths of programs in
//! `<cache>/heddle/tools/<project>-<version>/bin`. A build happens in a folder of its own that is renamed when it
//! is complete, so a build that was interrupted is never taken for a finished one; builders of one project wait
//! for one another. Programs named by `KUBEBUILDER_ASSETS` are used instead of building them.

mod build;
mod gomod;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::progress::Progress;
pub use build::Target;

/// A Go project that programs come from: one folder under `tests/tools`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Project {
    Kubernetes,
    Etcd,
    Containerd,
    CoreDns,
    CertManager,
    Conformance,
    Echo,
    H2spec,
}

/// A program that a project provides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    KubeApiserver,
    KubeControllerManager,
    KubeScheduler,
    Kubelet,
    KubeProxy,
    Kubectl,
    Etcd,
    Containerd,
    ContainerdShim,
    Ctr,
    CoreDns,
    CertManager,
    /// The Gateway API conformance suite.
    Conformance,
    /// The two programs of that suite's mesh workload.
    EchoServer,
    EchoClient,
    H2spec,
}

impl Program {
    /// What etcd and an API server alone need.
    pub const API: &[Self] = &[Self::Etcd, Self::KubeApiserver, Self::Kubectl];
    /// What a whole cluster needs.
    pub const NODE: &[Self] = &[
        Self::Etcd,
        Self::KubeApiserver,
        Self::Kubectl,
        Self::KubeControllerManager,
        Self::KubeScheduler,
        Self::Kubelet,
        Self::KubeProxy,
        Self::Containerd,
        Self::ContainerdShim,
        Self::Ctr,
        Self::CoreDns,
    ];
    /// What the Gateway API mesh conformance suite needs besides a cluster.
    pub const CONFORMANCE: &[Self] = &[Self::Conformance, Self::EchoServer, Self::EchoClient];

    /// Its file name.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::KubeApiserver => "kube-apiserver",
            Self::KubeControllerManager => "kube-controller-manager",
            Self::KubeScheduler => "kube-scheduler",
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
            Self::Kubectl => "kubectl",
            Self::Etcd => "etcd",
            Self::Containerd => "containerd",
            Self::ContainerdShim => "containerd-shim-runc-v2",
            Self::Ctr => "ctr",
            Self::CoreDns => "coredns",
            Self::CertManager => "certmanager",
            Self::Conformance => "conformance",
            Self::EchoServer => "server",
            Self::EchoClient => "client",
            Self::H2spec => "h2spec",
        }
    }

    fn project(self) -> Project {
        match self {
            Self::Etcd => Project::Etcd,
            Self::Containerd | Self::ContainerdShim | Self::Ctr => Project::Containerd,
            Self::CoreDns => Project::CoreDns,
            Self::CertManager => Project::CertManager,
            Self::Conformance => Project::Conformance,
            Self::EchoServer | Self::EchoClient => Project::Echo,
            Self::H2spec => Project::H2spec,
            _ => Project::Kubernetes,
        }
    }

    /// Where `KUBEBUILDER_ASSETS` may bring it from.
    fn in_assets(self, assets: Option<&Path>) -> Option<PathBuf> {
        if !matches!(self, Self::Etcd | Self::KubeApiserver | Self::Kubectl) {
            return None;
        }
        assets
            .map(|folder| folder.join(self.file_name()))
            .filter(|path| path.is_file())
    }
}

impl Project {
    /// Every project a cluster or a test can need, those that a build should begin with first.
    pub const ALL: &[Self] = &[
        Self::Kubernetes,
        Self::Etcd,
        Self::Containerd,
        Self::CoreDns,
        Self::CertManager,
        Self::Conformance,
        Self::Echo,
        Self::H2spec,
    ];

    /// Its name in messages and in the cache.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kubernetes => "kubernetes",
            Self::Etcd => "etcd",
            Self::Containerd => "containerd",
            Self::CoreDns => "coredns",
            Self::CertManager => "certmanager",
            Self::Conformance => "conformance",
            Self::Echo => "echo",
            Self::H2spec => "h2spec",
        }
    }

    /// The module whose version names the build.
    fn module(self) -> &'static str {
        match self {
            Self::Kubernetes => "k8s.io/kubernetes",
            Self::Etcd => "go.etcd.io/etcd/server/v3",
            Self::Containerd => "github.com/containerd/containerd/v2",
            Self::CoreDns => "github.com/coredns/coredns",
            Self::CertManager => "github.com/cert-manager/cert-manager",
            Self::Conformance => "sigs.k8s.io/gateway-api/conformance",
            Self::Echo => "istio.io/istio",
            Self::H2spec => "github.com/summerwind/h2spec",
        }
    }

    /// The packages to build; each becomes one program, named for the last part of its path.
    fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Kubernetes => &[
                "k8s.io/kubernetes/cmd/kube-apiserver",
                "k8s.io/kubernetes/cmd/kube-controller-manager",
                "k8s.io/kubernetes/cmd/kube-scheduler",
                "k8s.io/kubernetes/cmd/kubelet",
                "k8s.io/kubernetes/cmd/kube-proxy",
                "k8s.io/kubernetes/cmd/kubectl",
            ],
            Self::Containerd => &[
                "github.com/containerd/containerd/v2/cmd/containerd",
                "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
                "github.com/containerd/containerd/v2/cmd/ctr",
            ],
            Self::CoreDns => &["github.com/coredns/coredns"],
            Self::Echo => &[
                "istio.io/istio/pkg/test/echo/cmd/server",
                "istio.io/istio/pkg/test/echo/cmd/client",
            ],
            Self::H2spec => &["github.com/summerwind/h2spec/cmd/h2spec"],
            // A small main of our own in the module's folder.
            Self::Etcd | Self::CertManager | Self::Conformance => &["."],
        }
    }

    fn linker_flags(self, version: &str) -> String {
        let mut flags = "-s -w".to_owned();
        if self == Self::Kubernetes {
            // Without these the programs call themselves v0.0.0-master, and clients refuse to talk to them.
            let package = "k8s.io/component-base/version";
            let mut parts = version.trim_start_matches('v').split('.');
            let (major, minor) = (parts.next().unwrap_or("1"), parts.next().unwrap_or("0"));
            flags.push_str(&format!(
                " -X {package}.gitVersion={version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
            ));
        }
        flags
    }

    /// What has to be built for it, and where the result goes.
    pub fn target(self) -> Result<Target> {
        let source = crate::workspace_root().join("tests/tools").join(self.name());
        let gomod = source.join("go.mod");
        let text = fs_read(&gomod)?;
        let version = gomod::required_version(&text, self.module())
            .with_context(|| format!("{} does not require {}", gomod.display(), self.module()))?;
        let flags = self.linker_flags(&version);
        Target::new(
            self.name(),
            &version,
            source,
            flags,
            self.packages(),
            cache_dir()?.join("tools"),
        )
    }
}

/// Paths of programs that are there.
#[derive(Debug, Clone)]
pub struct Tools {
    programs: BTreeMap<Program, PathBuf>,
}

impl Tools {
    /// Finds `programs`, building the projects that are not built yet. Blocks: minutes for the first build.
    pub fn ensure(programs: &[Program], progress: Progress) -> Result<Self> {
        let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
        let mut found = BTreeMap::new();
        let mut wanted: BTreeSet<Project> = BTreeSet::new();
        for &program in programs {
            match program.in_assets(assets.as_deref()) {
                Some(path) => drop(found.insert(program, path)),
                None => drop(wanted.insert(program.project())),
            }
        }
        for project in wanted {
            let bin = project.target()?.ensure(progress)?;
            let built = programs
                .iter()
                .copied()
                .filter(|program| program.project() == project);
            for program in built.filter(|program| program.in_assets(assets.as_deref()).is_none()) {
                let path = bin.join(program.file_name());
                if !path.is_file() {
                    bail!("the build of {} made no {}", project.name(), path.display());
                }
                found.insert(program, path);
            }
        }
        Ok(Self { programs: found })
    }

    /// The path of `program`, which must be among those asked for.
    pub fn path(&self, program: Program) -> &Path {
        self.programs
            .get(&program)
            .expect("a program is used only after Tools::ensure was asked for it")
    }
}

/// Where built things are kept between runs and checkouts: `HEDDLE_CACHE`, or `heddle` in the user's cache folder.
pub fn cache_dir() -> Result<PathBuf> {
    let variable = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(own) = variable("HEDDLE_CACHE") {
        return Ok(own.join("heddle"));
    }
    let user = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
    let user =
        user.context("none of HEDDLE_CACHE, XDG_CACHE_HOME and HOME is set: no place for built tools")?;
    Ok(user.join("heddle"))
}

fn fs_read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_project_of_a_cluster_names_a_pinned_version() {
        for &project in Project::ALL {
            let target = project.target().unwrap();
            assert!(
                target.version().starts_with('v'),
                "{project:?}: {}",
                target.version()
            );
        }
    }

    #[test]
    fn kubernetes_is_told_its_version() {
        let flags = Project::Kubernetes.linker_flags("v1.36.3");
        assert!(
            flags.contains("gitVersion=v1.36.3")
                && flags.contains("gitMajor=1")
                && flags.contains("gitMinor=36")
        );
    }
}
