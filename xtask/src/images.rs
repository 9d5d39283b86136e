//! `cargo xtask images`: make images of this workspace's programs, without a registry and without an engine.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use heddle_tests_harness::cluster::Cluster;
use heddle_tests_harness::image;
use heddle_tests_harness::progress::Progress;

use crate::packages;

/// Build Heddle's programs and load them into a cluster as images, or write the images to a folder.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Cargo profile: `dev` builds fast, `image` runs fast.
    #[arg(long, default_value = "dev")]
    profile: String,
    /// The cluster to load them into.
    #[arg(long, default_value = "heddle", conflicts_with = "output")]
    cluster: String,
    /// Write the tars here (for `docker load` or `ctr images import`) and load nothing.
    #[arg(long)]
    output: Option<PathBuf>,
    /// Only these images, without registry and tag; all by default.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let Arguments {
        profile,
        cluster,
        output,
        only,
    } = arguments;
    // A wrong name is found before the build rather than after it.
    let target = match output {
        Some(folder) => Target::Folder(folder),
        None => Target::Cluster(Cluster::attach(&cluster)?),
    };
    packages::ensure(heddle_tests_harness::host::BUILD_PACKAGES, Progress::Shown)?;
    build_and_load(&profile, target, &only).await
}

/// Where images go.
pub(crate) enum Target {
    Folder(PathBuf),
    Cluster(Cluster),
}

/// Builds the programs with `profile` and brings the images named in `only` (all if empty) to `target`.
pub(crate) async fn build_and_load(profile: &str, target: Target, only: &[String]) -> Result<()> {
    let known = image::HEDDLE_IMAGES;
    for name in only {
        let names: Vec<&str> = known.iter().map(|image| image.name).collect();
        names
            .contains(&name.as_str())
            .then_some(())
            .with_context(|| format!("no image {name}; there are {}", names.join(", ")))?;
    }
    let images: Vec<_> = known
        .iter()
        .copied()
        .filter(|image| only.is_empty() || only.iter().any(|name| name == image.name))
        .collect();
    let start = Instant::now();
    let (profile, wanted) = (profile.to_owned(), images.clone());
    let programs = tokio::task::spawn_blocking(move || image::build_programs(&wanted, &profile)).await??;
    eprintln!("  ✓ Programs built {:.1} s", start.elapsed().as_secs_f64());
    let temporary = tempfile::tempdir().context("failed to make a temporary folder for images")?;
    let folder = match &target {
        Target::Folder(folder) => folder.clone(),
        Target::Cluster(_) => temporary.path().to_path_buf(),
    };
    for image in images {
        let step = Progress::Shown.step(image.reference());
        let (programs, folder) = (programs.clone(), folder.clone());
        let tars =
            tokio::task::spawn_blocking(move || image::write_images(&[image], &programs, &folder)).await??;
        if let Target::Cluster(cluster) = &target {
            for tar in &tars {
                cluster.load_image(tar).await?;
                std::fs::remove_file(tar).with_context(|| format!("failed to remove {}", tar.display()))?;
            }
        }
        step.done();
    }
    Ok(())
}
