//! The plugin: one request, one answer, and between them a decision about one pod.

use std::{
    io::{Read, Write as _},
    path::Path,
    process::ExitCode,
};

use heddle_daemon::report;
use heddle_mesh::port;
use heddle_proxy_init::{EnterError, InstallError, RuleSet, enter, install, missing};
use serde_json::Value;

use crate::{
    PLUGIN,
    api::Api,
    config::Config,
    kubeconfig::Kubeconfig,
    pod::{self, Decision, Namespace, Reason},
    protocol::{Code, Command, Failure, NEWEST, Request, versions},
};

/// Serves one request and says how it went on standard output, as the specification asks.
pub fn main(command: &str, variable: impl Fn(&str) -> Option<String>, input: impl Read) -> ExitCode {
    let mut version = NEWEST.to_owned();
    let answer = Request::read(command, variable, input).and_then(|request| {
        version.clone_from(&request.version);
        serve(&request)
    });
    let (text, code) = match answer {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(value)) => (value, ExitCode::SUCCESS),
        Err(failure) => {
            eprintln!("{PLUGIN}: {failure}");
            (failure.to_json(&version), ExitCode::FAILURE)
        }
    };
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => code,
        Err(error) => {
            eprintln!("{PLUGIN}: failed to write the answer: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(request: &Request) -> Result<Option<Value>, Failure> {
    match request.command {
        Command::Version => Ok(Some(versions())),
        Command::Add => add(request).map(Some),
        Command::Check => check(request).map(|()| None),
        Command::Status => status(request).map(|()| None),
        // The rules go with the network namespace; nothing else is kept.
        Command::Del | Command::Gc => Ok(None),
    }
}

fn add(request: &Request) -> Result<Value, Failure> {
    let config = Config::read(&request.config)?;
    let decided = decide(request, &config)?;
    if config.talks() {
        eprintln!("{PLUGIN}: {}: {}", pod_name(request), describe(&decided));
    }
    if let Decision::Redirect(redirect) = decided {
        let rules = redirect.rules().map_err(|error| {
            Failure::new(
                Code::InvalidPod,
                format!("{} cannot be redirected: {error}", pod_name(request)),
            )
        })?;
        match config.linkerd.simulate {
            true => eprint!("{rules}"),
            false => {
                enter_namespace(request)?;
                install(&rules).map_err(rules_failure)?;
            }
        }
    }
    Ok(request.passed_on())
}

fn check(request: &Request) -> Result<(), Failure> {
    let config = Config::read(&request.config)?;
    let Decision::Redirect(redirect) = decide(request, &config)? else {
        return Ok(());
    };
    let rules: RuleSet = redirect
        .rules()
        .map_err(|error| Failure::new(Code::InvalidPod, error.to_string()))?;
    enter_namespace(request)?;
    let missing = missing(&rules).map_err(rules_failure)?;
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        Code::RulesMissing,
        format!(
            "{} carries {} but is not redirected to it: chains {} are gone; delete the pod",
            pod_name(request),
            port::PROXY_CONTAINER,
            missing.join(", ")
        ),
    ))
}

/// Whether ADD could be served, without asking the API server: runtimes ask this often, and a node whose API server
/// is away for a moment must not become unready.
fn status(request: &Request) -> Result<(), Failure> {
    let config = Config::read(&request.config)?;
    let unavailable = |text: String| Failure::new(Code::Unavailable, text);
    let kubeconfig = Kubeconfig::read(Path::new(&config.kubernetes.kubeconfig))
        .map_err(|error| unavailable(report::chain(&error)))?;
    Api::new(&kubeconfig)
        .map(drop)
        .map_err(|error| unavailable(error.to_string()))
}

fn decide(request: &Request, config: &Config) -> Result<Decision, Failure> {
    let argument = |name: &str| {
        request
            .args
            .get(name)
            .map(String::as_str)
            .filter(|text| !text.is_empty())
    };
    let (Some(namespace), Some(name)) = (argument("K8S_POD_NAMESPACE"), argument("K8S_POD_NAME")) else {
        return Ok(Decision::Leave(Reason::NoPod));
    };
    if config
        .kubernetes
        .exclude_namespaces
        .iter()
        .any(|one| one == namespace)
    {
        return Ok(Decision::Leave(Reason::ExcludedNamespace));
    }
    let kubeconfig = Kubeconfig::read(Path::new(&config.kubernetes.kubeconfig))
        .map_err(|error| Failure::new(Code::TryAgain, report::chain(&error)))?;
    let api = Api::new(&kubeconfig)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Code::InputOutput, format!("failed to start: {error}")))?;
    let pod = runtime.block_on(api.pod(namespace, name))?;
    same_pod(&pod, argument("K8S_POD_UID"), namespace, name)?;
    if let Some(reason) = pod.left_alone() {
        return Ok(Decision::Leave(reason));
    }
    let namespace = match pod.inherits() {
        true => runtime.block_on(api.namespace(namespace))?,
        false => Namespace::default(),
    };
    pod::decide(&config.linkerd, &pod, &namespace, Some(api.port()))
}

/// A StatefulSet's pod has the name of the one before it. The network must not be made by what another pod says.
fn same_pod(pod: &pod::Pod, uid: Option<&str>, namespace: &str, name: &str) -> Result<(), Failure> {
    // A static pod's uid is the kubelet's, and the API server's is that of its mirror.
    const MIRROR: &str = "kubernetes.io/config.mirror";
    let found = pod.metadata.uid.as_str();
    match uid {
        Some(uid) if uid != found && !pod.metadata.annotations.contains_key(MIRROR) => Err(Failure::new(
            Code::TryAgain,
            format!("pod {namespace}/{name} has been replaced: its uid is {found} by now, and not {uid}"),
        )),
        _ => Ok(()),
    }
}

fn enter_namespace(request: &Request) -> Result<(), Failure> {
    let Some(path) = &request.netns else {
        return Err(Failure::new(
            Code::InvalidEnvironment,
            "CNI_NETNS is empty: expected the path of the pod's network namespace",
        ));
    };
    enter(Path::new(path))
        .map_err(|error: EnterError| Failure::new(Code::UnknownContainer, report::chain(&error)))
}

fn rules_failure(error: InstallError) -> Failure {
    Failure::new(Code::Rules, report::chain(&error))
}

fn pod_name(request: &Request) -> String {
    let argument = |name: &str| request.args.get(name).map_or("?", String::as_str);
    format!(
        "pod {}/{}",
        argument("K8S_POD_NAMESPACE"),
        argument("K8S_POD_NAME")
    )
}

fn describe(decided: &Decision) -> String {
    match decided {
        Decision::Redirect(redirect) => pod::describe(redirect),
        Decision::Leave(reason) => format!("left alone: {reason}"),
    }
}
