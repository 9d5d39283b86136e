//! The command line: flags, dispatch, and the one place where failures become exit codes and messages.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{
    commands,
    profile::{Bundled, ProfileError},
    source::SourceError,
};

/// A service mesh that is installed and run by committing YAML to Git.
#[derive(Debug, Parser)]
#[command(
    name = "heddle",
    version,
    about,
    disable_help_subcommand = true,
    propagate_version = true
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command.
#[derive(Clone, Debug, clap::Args)]
pub struct Global {
    /// The control plane's namespace.
    #[arg(short = 'L', long, global = true, env = "LINKERD_NAMESPACE", default_value = heddle_mesh::CONTROL_NAMESPACE)]
    pub linkerd_namespace: String,
    /// The kubeconfig file; otherwise KUBECONFIG, ~/.kube/config or the pod's service account.
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context.
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Say on stderr what is being done.
    #[arg(long, global = true)]
    pub verbose: bool,
    /// Read the bundled profiles from this folder instead of the binary; for work on the profiles.
    #[arg(long, global = true, hide = true, value_name = "DIR")]
    pub profiles_dir: Option<PathBuf>,
}

impl Global {
    /// The bundled profiles.
    ///
    /// # Errors
    /// A `--profiles-dir` that cannot be read.
    pub fn bundled(&self) -> Result<Bundled, Failure> {
        match &self.profiles_dir {
            Some(folder) => Ok(Bundled::from_folder(folder)?),
            None => Ok(Bundled::embedded()),
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Follow a mesh's source and keep the cluster as it says.
    Run(commands::run::Args),
    /// Print what a commit would do to the cluster; exits 0 for nothing, 1 for changes, 2 for errors.
    #[command(visible_alias = "diff")]
    Plan(commands::plan::Args),
    /// Apply a profile once.
    Apply(commands::apply::Args),
    /// Print the objects that a profile asks for.
    Render(commands::render::Args),
    /// Print what is applied, and whether it is ready.
    Status(commands::status::Args),
    /// Check whether the mesh can be installed, or is well; exits 1 when not.
    Check(commands::check::Args),
    /// Ask for the proxy in manifests.
    Inject(Box<commands::inject::Args>),
    /// Take the proxy, and what asks for it, out of manifests.
    Uninject(commands::uninject::Args),
    /// Print the manifests of the default profile, for kubectl apply -f -.
    Install(commands::install::Args),
    /// Print the CNI plugin's manifests, for kubectl apply -f -.
    InstallCni(commands::install_cni::Args),
    /// Print what authorizes requests to a workload.
    Authz(commands::authz::Args),
    /// Print what the control plane tells proxies, and metrics.
    #[command(visible_alias = "dg")]
    Diagnostics(commands::diagnostics::Args),
    /// Print the certificates that proxies show.
    Identity(commands::identity::Args),
    /// Print the version.
    Version(commands::version::Args),
    /// Print a shell's completion script.
    Completion(commands::completion::Args),
}

/// A command that failed: what is printed and the exit code.
#[derive(Debug)]
pub struct Failure {
    pub error: Box<dyn std::error::Error + Send + Sync>,
    pub hint: Option<String>,
    pub code: u8,
}

impl Failure {
    /// A failure that is only a message.
    pub fn message(message: impl Into<String>) -> Self {
        Self {
            error: message.into().into(),
            hint: None,
            code: 2,
        }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Self {
            hint: error.hint(),
            error: error.into(),
            code: 2,
        }
    }
}

impl From<ProfileError> for Failure {
    fn from(error: ProfileError) -> Self {
        match error {
            ProfileError::Source(error) => error.into(),
            error => Self {
                error: error.into(),
                hint: None,
                code: 2,
            },
        }
    }
}

impl From<crate::fault::Faults> for Failure {
    fn from(error: crate::fault::Faults) -> Self {
        Self {
            error: error.into(),
            hint: None,
            code: 2,
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self {
            error: error.into(),
            hint: None,
            code: 2,
        }
    }
}

/// What a command ends with when nothing failed: an exit code.
pub type Outcome = Result<u8, Failure>;

/// Parses the arguments, runs the command, reports.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => ExitCode::from(code),
        // The reader of our output went away, as `head` does: nothing to report.
        Err(failure) if is_broken_pipe(&failure) => ExitCode::SUCCESS,
        Err(failure) => {
            let mut text = format!("error: {}\n", chain(failure.error.as_ref()));
            if let Some(hint) = failure.hint {
                text.push_str(&format!("hint: {hint}\n"));
            }
            // A closed stderr leaves nobody to tell.
            let _ = std::io::stderr().write_all(text.as_bytes());
            ExitCode::from(failure.code)
        }
    }
}

fn run(cli: Cli) -> Outcome {
    let Cli { global, command } = cli;
    match command {
        Command::Run(args) => commands::run::run(&global, args),
        Command::Plan(args) => commands::plan::run(&global, args),
        Command::Apply(args) => commands::apply::run(&global, args),
        Command::Render(args) => commands::render::run(&global, args),
        Command::Status(args) => commands::status::run(&global, args),
        Command::Check(args) => commands::check::run(&global, args),
        Command::Inject(args) => commands::inject::run(&global, *args),
        Command::Uninject(args) => commands::uninject::run(args),
        Command::Install(args) => commands::install::run(&global, args),
        Command::InstallCni(args) => commands::install_cni::run(&global, args),
        Command::Authz(args) => commands::authz::run(&global, args),
        Command::Diagnostics(args) => commands::diagnostics::run(&global, args),
        Command::Identity(args) => commands::identity::run(&global, args),
        Command::Version(args) => commands::version::run(&global, args),
        Command::Completion(args) => commands::completion::run(args),
    }
}

fn is_broken_pipe(failure: &Failure) -> bool {
    failure
        .error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Writes data to stdout.
///
/// # Errors
/// What stdout says.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// An error and its causes, each once.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    heddle_daemon::report::chain(error)
}

/// Says something on stderr.
pub fn say(text: &str) {
    // A closed stderr leaves nobody to tell.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
