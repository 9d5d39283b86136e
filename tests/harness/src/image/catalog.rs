//! Which images there are, and how their programs are built.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::elf;
use super::tarball::{Entry, Image, Layer};
use crate::{sidecar, tools::cache_dir};

/// Tag of every image.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The sandbox container of every pod.
pub const PAUSE_IMAGE: &str = "heddle.dev/pause:0.1.0";

/// The workload of tests and of the demo.
pub const TEST_HTTP_IMAGE: &str = "heddle.dev/test-http:0.1.0";

/// An image of this workspace's programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProgramImage {
    /// Its name between registry and tag.
    pub name: &'static str,
    /// Its programs, each at `/<program>`; the first is the entry point.
    pub programs: &'static [&'static str],
    packages: &'static [&'static str],
    user: u32,
}

const fn image(
    name: &'static str,
    programs: &'static [&'static str],
    packages: &'static [&'static str],
    user: u32,
) -> ProgramImage {
    ProgramImage {
        name,
        programs,
        packages,
        user,
    }
}

const PAUSE: ProgramImage = image("pause", &["pause"], &["heddle-tests-harness"], 65535);

/// What runs in a cluster with Heddle: its own programs, and the workload of tests.
pub const HEDDLE_IMAGES: &[ProgramImage] = &[
    image("heddle", &["heddle"], &["heddle-reconciler"], 2103),
    image("control", &["heddle-control"], &["heddle-control"], 2103),
    image("identity", &["heddle-identity"], &["heddle-identity"], 2103),
    image(
        "proxy",
        &["heddle-proxy", "heddle-init"],
        &["heddle-proxy", "heddle-proxy-init"],
        2102,
    ),
    image(
        "cni",
        &["heddle-cni", "heddle-cni-repair"],
        &["heddle-proxy-cni", "heddle-proxy-cni-repair"],
        2103,
    ),
    image("test-http", &["test-http"], &["heddle-tests-harness"], 65534),
];

impl ProgramImage {
    /// Its full name.
    pub fn reference(&self) -> String {
        format!("heddle.dev/{}:{VERSION}", self.name)
    }

    /// The image, from where its programs are.
    fn assemble(&self, programs: &BTreeMap<String, PathBuf>) -> Result<Image> {
        let mut base = base_layer();
        let mut own = Layer::default();
        for program in self.programs {
            let path = programs
                .get(*program)
                .with_context(|| format!("no program {program} was built for image {}", self.name))?;
            for object in elf::shared_objects(path)? {
                base.add(object.clone(), Entry::Program(object, None));
            }
            own.add(Path::new("/").join(program), Entry::Program(path.clone(), None));
        }
        let entrypoint = self
            .programs
            .first()
            .map(|program| format!("/{program}"))
            .into_iter()
            .collect();
        Ok(Image {
            name: self.reference(),
            layers: vec![base, own],
            entrypoint,
            user: format!("{0}:{0}", self.user),
        })
    }
}

/// What every program finds around it.
pub(super) fn base_layer() -> Layer {
    let passwd = "root:x:0:0:root:/:/none\nlinkerd-proxy:x:2102:2102::/:/none\nheddle:x:2103:2103::/:/none\nnobody:x:65534:65534::/:/none\n";
    let group = "root:x:0:\nlinkerd-proxy:x:2102:\nheddle:x:2103:\nnobody:x:65534:\n";
    let mut base = Layer::default();
    base.add("/tmp", Entry::Folder(0o1777))
        .add("/etc/passwd", Entry::Text(passwd.into(), 0o644))
        .add("/etc/group", Entry::Text(group.into(), 0o644))
        // What /etc/hosts says comes first, as everywhere.
        .add(
            "/etc/nsswitch.conf",
            Entry::Text("hosts: files dns\n".into(), 0o644),
        );
    base
}

/// Builds the programs of `images` with Cargo and returns their paths by name. Cargo's own progress is shown.
///
/// One run of Cargo builds them all, so that it picks one set of features for their dependencies and compiles each of
/// these once. For development that set is the whole workspace's, as `cargo build --workspace` and the tests have it.
pub fn build_programs(images: &[ProgramImage], profile: &str) -> Result<BTreeMap<String, PathBuf>> {
    let mut arguments = vec!["--profile", profile];
    let mut alone = false;
    if profile == "dev" {
        arguments.push("--workspace");
    }
    for image in images {
        if profile == "dev" {
            arguments.extend(image.programs.iter().flat_map(|program| ["--bin", program]));
            continue;
        }
        // The sidecar for users is built in a way of its own.
        let others = |names: &'static [&'static str]| names.iter().filter(|name| **name != sidecar::NAME);
        alone |= image.programs.contains(&sidecar::NAME);
        arguments.extend(others(image.packages).flat_map(|package| ["--package", package]));
        arguments.extend(others(image.programs).flat_map(|program| ["--bin", program]));
    }
    let mut programs = cargo("build", arguments)?;
    if alone {
        let arguments = sidecar::build_arguments();
        programs.extend(cargo("build", arguments.iter().map(String::as_str))?);
    }
    for (package, program) in STATIC {
        // Images for development run on this very machine, and linking differently would build every dependency anew.
        if profile != "dev" && programs.contains_key(*program) {
            let link = ["--", "-C", "target-feature=+crt-static"];
            let arguments = ["--profile", profile, "--package", package, "--bin", program];
            programs.extend(cargo("rustc", arguments.into_iter().chain(link))?);
        }
    }
    Ok(programs)
}

/// Programs that leave their image and run on the nodes themselves, whatever C library these have: package, program.
const STATIC: &[(&str, &str)] = &[("heddle-proxy-cni", "heddle-cni")];

/// Writes every image of `images` to `folder`, from programs that [`build_programs`] made; returns the tars.
pub fn write_images(
    images: &[ProgramImage],
    programs: &BTreeMap<String, PathBuf>,
    folder: &Path,
) -> Result<Vec<PathBuf>> {
    let mut tars = Vec::new();
    for image in images {
        let path = folder.join(format!("{}.tar", image.name));
        image.assemble(programs)?.write(&path)?;
        tars.push(path);
    }
    Ok(tars)
}

/// The tar of [`PAUSE_IMAGE`], built when its source is new to this machine.
pub fn pause_tar() -> Result<PathBuf> {
    let source = include_str!("../bin/pause.rs");
    let key = hex::encode(Sha256::digest(source));
    let tar = cache_dir()?
        .join("images")
        .join(format!("pause-{VERSION}-{}.tar", &key[..12]));
    if !tar.is_file() {
        // With xtask's package, so that dependencies have the features that `cargo xtask` has just built.
        let packages = ["--package", "heddle-xtask", "--package", "heddle-tests-harness"];
        let programs = cargo("build", packages.into_iter().chain(["--bin", "pause"]))?;
        PAUSE.assemble(&programs)?.write(&tar)?;
    }
    Ok(tar)
}

/// A line of Cargo's messages, as far as it matters here.
#[derive(Deserialize)]
struct Message {
    reason: String,
    executable: Option<PathBuf>,
}

fn cargo<'a>(
    command: &str,
    arguments: impl IntoIterator<Item = &'a str>,
) -> Result<BTreeMap<String, PathBuf>> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    cargo
        .args([command, "--message-format=json-render-diagnostics"])
        .args(arguments)
        .current_dir(crate::workspace_root());
    // What Cargo told this process about itself must not look like a change to build scripts.
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("CARGO_PKG_")
            || name_text.starts_with("CARGO_MANIFEST_")
            || name_text == "CARGO_CRATE_NAME"
        {
            cargo.env_remove(&name);
        }
    }
    let output = cargo
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("failed to start cargo")?;
    if !output.status.success() {
        bail!(
            "`cargo {command}` of the images' programs failed ({}); what it said is above",
            output.status
        );
    }
    let text = String::from_utf8(output.stdout).context("cargo's messages are not text")?;
    let messages = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok());
    let executables = messages
        .filter(|message| message.reason == "compiler-artifact")
        .filter_map(|message| message.executable);
    Ok(executables
        .filter_map(|path| Some((path.file_name()?.to_str()?.to_owned(), path)))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_carry_the_version() {
        assert_eq!(PAUSE.reference(), PAUSE_IMAGE);
        assert!(
            HEDDLE_IMAGES
                .iter()
                .any(|image| image.reference() == TEST_HTTP_IMAGE)
        );
    }
}
