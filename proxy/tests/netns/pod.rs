//! A meshed pod: a namespace with redirection, a control plane on its loopback, and the proxy.

use std::{
    collections::BTreeMap,
    io::Write as _,
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use crate::{
    apps,
    cgroup::Cgroup,
    control::{self, Running, Script},
    eventually,
    net::{Namespace, Network},
    policies::identity,
};

const PROXY: &str = env!("CARGO_BIN_EXE_heddle-proxy");
/// The redirection's uid for the proxy.
const UID: u32 = 2102;

/// A meshed pod.
pub(crate) struct Pod {
    pub namespace: Namespace,
    pub control: Option<Running>,
    proxy: Child,
    _token: tempfile::NamedTempFile,
    /// What the proxy writes there, when it writes an access log.
    stderr: Option<tempfile::NamedTempFile>,
}

/// What differs between pods.
pub(crate) struct Options {
    pub env: Vec<(&'static str, String)>,
}

impl Pod {
    pub(crate) fn start(network: &Network, script: &Script, account: &str) -> Self {
        Self::start_with(network, script, account, Options { env: Vec::new() })
    }

    pub(crate) fn start_with(network: &Network, script: &Script, account: &str, options: Options) -> Self {
        let mut command = Command::new(PROXY);
        command.uid(UID);
        let logs = options.env.iter().any(|(name, _)| *name == "ACCESS_LOG");
        let stderr = logs.then(|| tempfile::NamedTempFile::new().expect("a temporary file"));
        if let Some(stderr) = &stderr {
            command.stderr(stderr.reopen().expect("our own file"));
        }
        let mut pod = Self::start_as(command, network, script, account, options);
        pod.stderr = stderr;
        pod
    }

    /// A pod whose proxy may open only so many file descriptors.
    pub(crate) fn start_with_files(
        network: &Network,
        script: &Script,
        account: &str,
        files_max: usize,
    ) -> Self {
        let mut command = Command::new("prlimit");
        command.uid(UID).arg(format!("--nofile={files_max}")).arg(PROXY);
        Self::start_as(command, network, script, account, Options { env: Vec::new() })
    }

    /// A pod whose proxy finds itself in this memory cgroup, as a container does.
    pub(crate) fn start_in_cgroup(
        network: &Network,
        script: &Script,
        account: &str,
        cgroup: &Cgroup,
    ) -> Self {
        let script_in_mounts = r#"echo $$ >"$1/cgroup.procs" && mount --bind "$1" "$2" && exec "${@:3}""#;
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "bash", "-c", script_in_mounts, "bash"])
            .args([cgroup.path(), cgroup.root()])
            .args(["setpriv", "--clear-groups", "--regid=2102"])
            .arg(format!("--reuid={UID}"))
            .arg(PROXY);
        Self::start_as(command, network, script, account, Options { env: Vec::new() })
    }

    /// A pod whose proxy logs there what it is asked for.
    pub(crate) fn start_logging(
        network: &Network,
        script: &Script,
        account: &str,
        [stdout, stderr]: [Stdio; 2],
    ) -> Self {
        let mut command = Command::new(PROXY);
        command.uid(UID).stdout(stdout).stderr(stderr);
        let env = vec![
            ("ACCESS_LOG", "apache".to_owned()),
            ("LOG", "heddle=debug".to_owned()),
        ];
        Self::start_as(command, network, script, account, Options { env })
    }

    /// Starts what the command makes the proxy.
    fn start_as(
        mut command: Command,
        network: &Network,
        script: &Script,
        account: &str,
        options: Options,
    ) -> Self {
        let namespace = network.namespace();
        let init = Command::new(init_binary())
            .args([
                "--netns",
                &namespace.path(),
                "--inbound-ports-to-ignore",
                "4190,4191",
            ])
            .output()
            .expect("heddle-init runs");
        assert!(
            init.status.success(),
            "heddle-init: {}",
            String::from_utf8_lossy(&init.stderr)
        );
        let control = script.serve(&namespace);
        let mut token = tempfile::NamedTempFile::new().expect("a temporary file");
        token.write_all(b"a token").expect("a small file");
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        token.as_file().set_permissions(readable).expect("our own file");

        let control_addr = format!("127.0.0.1:{}", control::PORT);
        let vars = [
            ("DESTINATION_SVC_ADDR", control_addr.clone()),
            ("POLICY_SVC_ADDR", control_addr.clone()),
            ("IDENTITY_SVC_ADDR", control_addr),
            ("POLICY_WORKLOAD", account.to_owned()),
            ("IDENTITY_DIR", "/tmp".to_owned()),
            ("IDENTITY_TOKEN_FILE", token.path().display().to_string()),
            ("IDENTITY_TRUST_ANCHORS", script.anchors().to_owned()),
            ("IDENTITY_LOCAL_NAME", identity(account)),
            ("INBOUND_IPS", namespace.ip.to_string()),
            ("ADMIN_LISTEN_ADDR", "0.0.0.0:4191".to_owned()),
            ("OUTBOUND_DETECT_TIMEOUT", "1s".to_owned()),
            ("INBOUND_DETECT_TIMEOUT", "1s".to_owned()),
            ("SHUTDOWN_GRACE_PERIOD", "20s".to_owned()),
            // Two workers, so that what they share is tested, too.
            ("CORES", "2".to_owned()),
            (
                "LOG",
                std::env::var("PROXY_LOG").unwrap_or_else(|_| "warn".to_owned()),
            ),
        ];
        command.env_clear().stdin(Stdio::null());
        for (name, value) in vars.into_iter().chain(options.env) {
            command.env(format!("LINKERD2_PROXY_{name}"), value);
        }
        // A child starts in the namespace of the thread that makes it.
        let proxy = namespace
            .thread(move || command.spawn().expect("heddle-proxy starts"))
            .join();
        let pod = Self {
            namespace,
            control: Some(control),
            proxy: proxy.expect("no panic"),
            _token: token,
            stderr: None,
        };
        eventually("the proxy is ready", || {
            (pod.admin("/ready").0 == 200).then_some(())
        });
        pod
    }

    pub(crate) fn addr(&self, port: u16) -> SocketAddr {
        (self.namespace.ip, port).into()
    }

    /// Asks the admin server, over loopback.
    pub(crate) fn admin(&self, path: &str) -> (u16, String) {
        let path = path.to_owned();
        self.namespace.block_on(move || async move {
            match apps::try_get(([127, 0, 0, 1], 4191).into(), &path).await {
                Ok(reply) => (reply.status, reply.body),
                Err(_) => (0, String::new()),
            }
        })
    }

    /// The value of the first series of this name whose labels have all of these.
    pub(crate) fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let (_, text) = self.admin("/metrics");
        let line = text.lines().find(|line| {
            line.starts_with(&format!("{name}{{"))
                && labels
                    .iter()
                    .all(|(name, value)| line.contains(&format!("{name}=\"{value}\"")))
        })?;
        line.rsplit_once(' ')?.1.parse().ok()
    }

    /// All series of this name: their labels, all of them, and their values.
    pub(crate) fn series(&self, name: &str) -> BTreeMap<Labels, f64> {
        let (_, text) = self.admin("/metrics");
        let series = text.lines().filter_map(|line| {
            let (labels, value) = line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once("} ")?;
            Some((labels_of(labels), value.parse().expect("a number")))
        });
        series.collect()
    }

    /// What the proxy has written to its access log.
    pub(crate) fn stderr(&self) -> String {
        let file = self.stderr.as_ref().expect("the access log is on");
        std::fs::read_to_string(file.path()).expect("our own file")
    }

    /// Asks the proxy to end, as the kubelet does.
    pub(crate) fn terminate(&self) {
        rustix::process::kill_process(self.pid(), rustix::process::Signal::TERM).expect("our own child");
    }

    /// Memory that belongs to the proxy alone, and its share of what it shares.
    pub(crate) fn memory_kib(&self) -> u64 {
        let path = format!("/proc/{}/smaps_rollup", self.proxy.id());
        let text = std::fs::read_to_string(path).expect("the proxy runs");
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.expect("the kernel tells a process' share")
    }

    /// The proxy's open file descriptors.
    pub(crate) fn open_files(&self) -> usize {
        let path = format!("/proc/{}/fd", self.proxy.id());
        std::fs::read_dir(path).expect("the proxy runs").count()
    }

    pub(crate) fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_raw(self.proxy.id().try_into().expect("a pid")).expect("not zero")
    }

    /// Waits for the proxy's end and tells its exit code.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        eventually("the proxy ends", || self.proxy.try_wait().expect("our own child")).code()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.proxy.try_wait().expect("our own child").is_none()
    }
}

/// A series' labels.
pub(crate) type Labels = BTreeMap<String, String>;

/// Labels as tests write them.
pub(crate) fn labels<'l>(all: impl IntoIterator<Item = (&'l str, &'l str)>) -> Labels {
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    all.into_iter().map(owned).collect()
}

/// Labels as the proxy shows them; no test has a quotation mark in a value.
fn labels_of(text: &str) -> Labels {
    let mut parts = text.split('"');
    let mut all = Labels::new();
    while let (Some(name), Some(value)) = (parts.next(), parts.next()) {
        let name = name.trim_start_matches(',').trim_end_matches('=');
        let before = all.insert(name.to_owned(), value.to_owned());
        assert_eq!(before, None, "{name} is told twice in {text}");
    }
    all
}

impl Drop for Pod {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.proxy.kill();
        let _ = self.proxy.wait();
    }
}

/// `heddle-init`, next to the proxy; built when it is not there.
fn init_binary() -> PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let path = PathBuf::from(PROXY).with_file_name("heddle-init");
        if !path.exists() {
            let built = Command::new(env!("CARGO"))
                .args(["build", "-p", "heddle-proxy-init"])
                .status();
            assert!(
                built.is_ok_and(|status| status.success()),
                "heddle-init cannot be built"
            );
        }
        path
    })
    .clone()
}

/// Waits a little, for tests that show that something does not happen.
pub(crate) const A_WHILE: Duration = Duration::from_millis(300);
