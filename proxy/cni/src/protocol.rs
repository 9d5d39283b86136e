//! The Container Network Interface's own words: requests by environment and standard input, results and errors on
//! standard output. Versions 0.1.0 to 1.1.0 differ in what results hold, which passes through here unread.

use std::{
    collections::BTreeMap,
    io::{self, Read},
};

use serde_json::{Value, json};

/// The environment variable that makes this program a plugin.
pub const COMMAND: &str = "CNI_COMMAND";

/// What runtimes may speak.
pub const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", NEWEST];
/// What is answered to a request that names no version.
pub const NEWEST: &str = "1.1.0";

/// A configuration holds a few plugins' settings and a result; a hundredth of this.
pub const INPUT_BYTES_MAX: u64 = 4 << 20;

/// What the runtime asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// A pod's network is being made.
    Add,
    /// A pod's network is going away.
    Del,
    /// Whether a pod's network is as it was made.
    Check,
    /// Whether the plugin can serve ADD.
    Status,
    /// What is left of pods that are gone is to be removed.
    Gc,
    /// Which versions the plugin speaks.
    Version,
}

/// A request, apart from its configuration's own fields.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// What is asked for.
    pub command: Command,
    /// Path of the pod's network namespace; absent where there is none any more.
    pub netns: Option<String>,
    /// `CNI_ARGS`: what the runtime says about the pod.
    pub args: BTreeMap<String, String>,
    /// The configuration, with the result of the plugins before this one.
    pub config: Value,
    /// The version to answer in.
    pub version: String,
}

/// Why a request is not served. The number is the specification's, or from 100 on this plugin's own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The kind of failure.
    pub code: Code,
    /// A sentence that the runtime shows in the pod's Events.
    pub message: String,
}

/// Error codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// The configuration's version is unknown.
    IncompatibleVersion = 1,
    /// The pod's network namespace does not exist.
    UnknownContainer = 3,
    /// An environment variable is missing or wrong.
    InvalidEnvironment = 4,
    /// Reading or writing failed.
    InputOutput = 5,
    /// Text is not in the form that it should have.
    Decode = 6,
    /// The configuration cannot be used.
    InvalidConfig = 7,
    /// It may work later.
    TryAgain = 11,
    /// The plugin cannot serve requests.
    Unavailable = 50,
    /// The pod cannot be redirected as its annotations say.
    InvalidPod = 100,
    /// The kernel refused the rules.
    Rules = 101,
    /// The rules are not there any more.
    RulesMissing = 102,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// As the runtime reads it.
    pub fn to_json(&self, version: &str) -> Value {
        json!({"cniVersion": version, "code": self.code as u32, "msg": format!("{}: {self}", crate::PLUGIN), "details": ""})
    }
}

impl Request {
    /// Reads a request; `variable` is the environment.
    ///
    /// # Errors
    /// A command or configuration that is not in CNI's form, or of an unknown version.
    pub fn read(
        command: &str,
        variable: impl Fn(&str) -> Option<String>,
        input: impl Read,
    ) -> Result<Self, Failure> {
        let command = Command::parse(command)?;
        let config = match command {
            // Some callers close standard input for this one.
            Command::Version => read_config(input).unwrap_or_else(|_| json!({})),
            _ => read_config(input)?,
        };
        let version = match config.get("cniVersion") {
            // The specification's default.
            None | Some(Value::Null) => "0.1.0",
            Some(Value::String(version)) if version.is_empty() => "0.1.0",
            Some(Value::String(version)) => version,
            Some(other) => {
                return Err(Failure::new(
                    Code::InvalidConfig,
                    format!("cniVersion is {other}: expected text such as \"1.0.0\""),
                ));
            }
        }
        .to_owned();
        if command != Command::Version && !VERSIONS.contains(&version.as_str()) {
            return Err(Failure::new(
                Code::IncompatibleVersion,
                format!(
                    "the network configuration has cniVersion {version}: this plugin speaks {} to {NEWEST}",
                    VERSIONS[0]
                ),
            ));
        }
        let filled = |name: &str| variable(name).filter(|value| !value.is_empty());
        Ok(Self {
            command,
            netns: filled("CNI_NETNS"),
            args: parse_args(&filled("CNI_ARGS").unwrap_or_default())?,
            config,
            version,
        })
    }

    /// What the plugins before this one made, for the ones after it.
    pub fn passed_on(&self) -> Value {
        match self.config.get("prevResult") {
            Some(Value::Object(result)) => {
                let mut result = result.clone();
                result
                    .entry("cniVersion")
                    .or_insert_with(|| self.version.as_str().into());
                Value::Object(result)
            }
            _ => json!({"cniVersion": self.version}),
        }
    }
}

impl Command {
    fn parse(text: &str) -> Result<Self, Failure> {
        match text {
            "ADD" => Ok(Self::Add),
            "DEL" => Ok(Self::Del),
            "CHECK" => Ok(Self::Check),
            "STATUS" => Ok(Self::Status),
            "GC" => Ok(Self::Gc),
            "VERSION" => Ok(Self::Version),
            other => Err(Failure::new(
                Code::InvalidEnvironment,
                format!("{COMMAND} is `{other}`: expected ADD, DEL, CHECK, STATUS, GC or VERSION"),
            )),
        }
    }
}

/// The answer to VERSION.
pub fn versions() -> Value {
    json!({"cniVersion": NEWEST, "supportedVersions": VERSIONS})
}

fn read_config(input: impl Read) -> Result<Value, Failure> {
    let mut text = Vec::new();
    input
        .take(INPUT_BYTES_MAX + 1)
        .read_to_end(&mut text)
        .map_err(|error: io::Error| {
            Failure::new(
                Code::InputOutput,
                format!("failed to read the network configuration: {error}"),
            )
        })?;
    if text.len() as u64 > INPUT_BYTES_MAX {
        return Err(Failure::new(
            Code::InvalidConfig,
            format!("the network configuration is larger than {INPUT_BYTES_MAX} bytes"),
        ));
    }
    match serde_json::from_slice(&text) {
        Ok(config @ Value::Object(_)) => Ok(config),
        Ok(_) => Err(Failure::new(
            Code::Decode,
            "the network configuration is no JSON object",
        )),
        Err(error) => Err(Failure::new(
            Code::Decode,
            format!("the network configuration is no JSON: {error}"),
        )),
    }
}

/// `KEY=VALUE;KEY=VALUE`.
fn parse_args(text: &str) -> Result<BTreeMap<String, String>, Failure> {
    text.split(';')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').ok_or_else(|| {
                Failure::new(
                    Code::InvalidEnvironment,
                    format!("CNI_ARGS has `{pair}`: expected KEY=VALUE pairs with semicolons between them"),
                )
            })?;
            Ok((key.to_owned(), value.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(command: &str, args: &str, input: &str) -> Result<Request, Failure> {
        let variable = |name: &str| match name {
            "CNI_ARGS" => Some(args.to_owned()),
            "CNI_NETNS" => Some("/run/netns/a".to_owned()),
            _ => None,
        };
        Request::read(command, variable, input.as_bytes())
    }

    #[test]
    fn a_request_is_read_and_its_result_passed_on() {
        let request = read(
            "ADD",
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=payments;K8S_POD_NAME=web",
            r#"{"cniVersion":"1.0.0","prevResult":{"ips":[{"address":"10.0.0.1/24"}]}}"#,
        )
        .expect("a request");
        assert_eq!(request.command, Command::Add);
        assert_eq!(request.args["K8S_POD_NAME"], "web");
        assert_eq!(
            request.passed_on(),
            json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1/24"}]})
        );
        let alone = read("ADD", "", r#"{"cniVersion":"0.4.0"}"#).expect("a request");
        assert_eq!(alone.passed_on(), json!({"cniVersion": "0.4.0"}));
    }

    #[test]
    fn what_is_no_request_is_refused_with_the_specifications_codes() {
        let code = |command, args, input| read(command, args, input).expect_err("refused").code;
        assert_eq!(code("PAUSE", "", "{}"), Code::InvalidEnvironment);
        assert_eq!(code("ADD", "nonsense", "{}"), Code::InvalidEnvironment);
        assert_eq!(code("ADD", "", "{"), Code::Decode);
        assert_eq!(code("ADD", "", "[]"), Code::Decode);
        assert_eq!(code("ADD", "", r#"{"cniVersion":7}"#), Code::InvalidConfig);
        assert_eq!(
            code("ADD", "", r#"{"cniVersion":"2.0.0"}"#),
            Code::IncompatibleVersion
        );
        let long = format!(r#"{{"name":"{}"}}"#, "a".repeat(INPUT_BYTES_MAX as usize));
        assert_eq!(code("ADD", "", &long), Code::InvalidConfig);
    }

    #[test]
    fn version_is_answered_whatever_the_input() {
        for input in ["", "{", r#"{"cniVersion":"9.9.9"}"#] {
            assert_eq!(
                read("VERSION", "", input).expect("answered").command,
                Command::Version
            );
        }
        assert_eq!(versions()["supportedVersions"][0], "0.1.0");
    }
}
