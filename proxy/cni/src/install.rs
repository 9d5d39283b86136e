//! The installer: keeps the plugin's program, its credentials and its entry where the container runtime looks for them,
//! and takes them away again when it is told to end.
//!
//! The order is such that whatever is killed in between, the runtime never calls a plugin that is not there: program and
//! credentials come before the entry, and go after it. Every file is replaced by a rename, never written in place.
//! The network configuration belongs to another plugin, whose own installer may write it anew at any time: the folder
//! is watched, and the entry put back.

mod chain;
mod files;

use std::{
    error::Error,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use heddle_daemon::{report, signal};
use notify::{EventKind, RecursiveMode, Watcher as _, event::AccessKind, event::AccessMode};
use serde_json::Value;
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::{PLUGIN, kubeconfig::Kubeconfig};
use files::{Replaced, read_bounded, replace, replace_unless_changed};

/// Where things are.
#[derive(Clone, Debug, clap::Args)]
pub struct Target {
    /// The runtime's folder of network configurations, as this process sees it.
    #[arg(long, default_value = "/host/etc/cni/net.d")]
    pub net_dir: PathBuf,
    /// The same folder as the runtime sees it.
    #[arg(long, default_value = "/etc/cni/net.d")]
    pub host_net_dir: PathBuf,
    /// The runtime's folder of plugins, as this process sees it.
    #[arg(long, default_value = "/host/opt/cni/bin")]
    pub bin_dir: PathBuf,
    /// The plugin's entry in network configurations, JSON.
    #[arg(long, default_value = "/etc/linkerd-cni/cni_network_config")]
    pub config_file: PathBuf,
    /// The service account's folder with `token` and `ca.crt`.
    #[arg(long, default_value = "/var/run/secrets/kubernetes.io/serviceaccount")]
    pub service_account_dir: PathBuf,
    /// URL of the API server.
    #[arg(long, env = "LINKERD_CNI_API_SERVER")]
    pub server: Option<String>,
    /// The file that holds the plugin's credentials, in the folder of network configurations.
    #[arg(long, default_value = "ZZZ-linkerd-cni-kubeconfig")]
    pub kubeconfig_name: String,
}

/// Why the plugin is not in place.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file or folder cannot be read or written.
    #[error("failed to {action} {}", .path.display())]
    File {
        /// What was to be done.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The plugin's own entry is not usable.
    #[error("the plugin's entry in {} is unusable: {reason}", .path.display())]
    Entry {
        /// Where it stands.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Nobody says where the API server is.
    #[error(
        "neither --server nor KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT say where the API server is"
    )]
    NoServer,
    /// There is no network configuration yet.
    #[error("there is no network configuration in {} yet: another CNI plugin has to be installed first", .0.display())]
    NoNetwork(PathBuf),
    /// Something is not in place.
    #[error("{0}")]
    NotInPlace(String),
    /// Signals or file events cannot be had.
    #[error("failed to {0}")]
    Start(&'static str, #[source] Box<dyn Error + Send + Sync>),
}

/// Looks at everything this often even without an event.
const INTERVAL: Duration = Duration::from_secs(30);
/// After a failure, or while there is no network configuration.
const RETRY: Duration = Duration::from_secs(2);
/// A configuration another installer is writing is complete after this time, and looked at again in any case.
const SETTLE: Duration = Duration::from_millis(50);

/// Installs and keeps until SIGTERM or SIGINT; then removes.
///
/// # Errors
/// What keeps it from starting, or from removing.
pub fn run(target: Target) -> Result<(), InstallError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| InstallError::Start("start a runtime", error.into()))?;
    runtime.block_on(keep(&target))?;
    remove(&target)
}

async fn keep(target: &Target) -> Result<(), InstallError> {
    let mut shutdown =
        signal::shutdown().map_err(|error| InstallError::Start("take signals", error.into()))?;
    let changed = Arc::new(Notify::new());
    // Watched before the first look, so that no change falls between them.
    let _watcher = watch(target, &changed)?;
    let mut complaint = None;
    loop {
        let pause = match install(target) {
            Ok(done) => {
                if done.is_empty() && complaint.is_some() {
                    info!("The plugin is in place");
                }
                complaint = None;
                done.iter().for_each(|what| info!("{what}"));
                INTERVAL
            }
            Err(error) => {
                let text = report::chain(&error);
                if complaint.as_ref() != Some(&text) {
                    warn!(error = %text, "The plugin is not in place");
                    complaint = Some(text);
                }
                RETRY
            }
        };
        tokio::select! {
            () = shutdown.requested() => return Ok(()),
            () = changed.notified() => tokio::time::sleep(SETTLE).await,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn watch(target: &Target, changed: &Arc<Notify>) -> Result<notify::RecommendedWatcher, InstallError> {
    let wake = Arc::clone(changed);
    let failed = |error: notify::Error| InstallError::Start("watch files", error.into());
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // What was only read, by us among others, has not changed.
        let read = event.is_ok_and(|event| {
            matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write))
        });
        if !read {
            wake.notify_one();
        }
    })
    .map_err(failed)?;
    let config_dir = target.config_file.parent().unwrap_or(Path::new("."));
    for folder in [
        &target.net_dir,
        &target.bin_dir,
        &target.service_account_dir,
        config_dir,
    ] {
        watcher
            .watch(folder, RecursiveMode::NonRecursive)
            .map_err(failed)?;
    }
    Ok(watcher)
}

/// Brings everything into place and says what had to be done: nothing, when it was.
fn install(target: &Target) -> Result<Vec<String>, InstallError> {
    let mut done = Vec::new();
    let program = own_program()?;
    let bin = target.bin_dir.join(PLUGIN);
    if replace(&bin, &program, 0o755)? == Replaced::Yes {
        done.push(format!("Installed the program {}", bin.display()));
    }
    let kubeconfig = target.net_dir.join(&target.kubeconfig_name);
    if replace(&kubeconfig, credentials(target)?.to_json().as_bytes(), 0o600)? == Replaced::Yes {
        done.push(format!("Wrote the kubeconfig {}", kubeconfig.display()));
    }
    let entry = entry(target)?;
    let Some(network) = first_network(&target.net_dir)? else {
        return Err(InstallError::NoNetwork(target.net_dir.clone()));
    };
    if let Some(changed) = network.list.with(&entry) {
        let path = network.path.with_extension(chain::LIST_EXTENSION);
        // Between reading and writing, its owner may have written a newer one: then we begin anew.
        if replace_unless_changed(&network.path, &network.text, &path, &changed)? == Replaced::No {
            return Err(InstallError::NotInPlace(format!(
                "{} changed while the plugin was being inserted",
                network.path.display()
            )));
        }
        if path != network.path {
            // A single plugin's configuration has become a list, which must not stand behind the old file.
            delete(&network.path)?;
        }
        done.push(format!("Inserted the plugin into {}", path.display()));
    }
    Ok(done)
}

/// Whether everything is in place.
///
/// # Errors
/// What is not.
pub fn verify(target: &Target) -> Result<(), InstallError> {
    for path in [
        target.bin_dir.join(PLUGIN),
        target.net_dir.join(&target.kubeconfig_name),
    ] {
        if !path.is_file() {
            return Err(InstallError::NotInPlace(format!("{} is missing", path.display())));
        }
    }
    let Some(network) = first_network(&target.net_dir)? else {
        return Err(InstallError::NoNetwork(target.net_dir.clone()));
    };
    match network.list.with(&entry(target)?) {
        None => Ok(()),
        Some(_) => Err(InstallError::NotInPlace(format!(
            "{} does not end with the plugin's entry",
            network.path.display()
        ))),
    }
}

/// Takes everything away again, the entries first: the runtime must not call a program that is gone.
fn remove(target: &Target) -> Result<(), InstallError> {
    for path in chain::candidates(&target.net_dir)? {
        let Some((text, list)) = read_network(&path)? else {
            continue;
        };
        if let Some(changed) = list.without() {
            match replace_unless_changed(&path, &text, &path, &changed)? {
                Replaced::Yes => info!("Removed the plugin from {}", path.display()),
                Replaced::No => warn!("{} changed meanwhile and is left as it is", path.display()),
            }
        }
    }
    delete(&target.net_dir.join(&target.kubeconfig_name))?;
    delete(&target.bin_dir.join(PLUGIN))?;
    info!("Removed kubeconfig and program");
    Ok(())
}

/// A network configuration that the runtime may use.
struct Network {
    path: PathBuf,
    text: Vec<u8>,
    list: chain::List,
}

/// The configuration that the runtime takes: the first by name. One that cannot be read is passed over, as its owner
/// may be about to write it.
fn first_network(folder: &Path) -> Result<Option<Network>, InstallError> {
    for path in chain::candidates(folder)? {
        if let Some((text, list)) = read_network(&path)? {
            return Ok(Some(Network { path, text, list }));
        }
    }
    Ok(None)
}

fn read_network(path: &Path) -> Result<Option<(Vec<u8>, chain::List)>, InstallError> {
    let Some(text) = read_bounded(path)? else {
        return Ok(None);
    };
    match chain::List::parse(path, &text) {
        Ok(list) => Ok(Some((text, list))),
        Err(reason) => {
            warn!("Passing over {}: {reason}", path.display());
            Ok(None)
        }
    }
}

fn entry(target: &Target) -> Result<Value, InstallError> {
    let wrong = |reason: String| InstallError::Entry {
        path: target.config_file.clone(),
        reason,
    };
    let text = read_bounded(&target.config_file)?.ok_or_else(|| wrong("the file is missing".into()))?;
    let mut entry: Value = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    if entry.get("type").and_then(Value::as_str) != Some(PLUGIN) {
        return Err(wrong(format!("its `type` is not {PLUGIN}")));
    }
    crate::config::Config::read(&entry).map_err(|error| wrong(error.to_string()))?;
    let kubeconfig = target.host_net_dir.join(&target.kubeconfig_name);
    entry["kubernetes"]["kubeconfig"] = kubeconfig.display().to_string().into();
    Ok(entry)
}

fn credentials(target: &Target) -> Result<Kubeconfig, InstallError> {
    let file = |name: &str| {
        let path = target.service_account_dir.join(name);
        fs::read(&path).map_err(|source| InstallError::File {
            action: "read",
            path,
            source,
        })
    };
    Ok(Kubeconfig {
        server: server(target)?,
        authority_pem: file("ca.crt")?,
        token: String::from_utf8_lossy(&file("token")?).trim().to_owned(),
    })
}

fn server(target: &Target) -> Result<String, InstallError> {
    if let Some(server) = &target.server {
        return Ok(server.clone());
    }
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    match (
        variable("KUBERNETES_SERVICE_HOST"),
        variable("KUBERNETES_SERVICE_PORT"),
    ) {
        (Some(host), Some(port)) if host.contains(':') => Ok(format!("https://[{host}]:{port}")),
        (Some(host), Some(port)) => Ok(format!("https://{host}:{port}")),
        _ => Err(InstallError::NoServer),
    }
}

/// This very program: it is its own plugin.
fn own_program() -> Result<Vec<u8>, InstallError> {
    let path = Path::new("/proc/self/exe");
    fs::read(path).map_err(|source| InstallError::File {
        action: "read",
        path: path.to_owned(),
        source,
    })
}

fn delete(path: &Path) -> Result<(), InstallError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(InstallError::File {
            action: "remove",
            path: path.to_owned(),
            source: error,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
