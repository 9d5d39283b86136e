//! The tar of an image: deterministic bytes from entries and a configuration.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};

/// An image to be written.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its full name with a tag other than `latest`.
    pub name: String,
    /// Bottom layer first.
    pub layers: Vec<Layer>,
    /// Absolute program and arguments.
    pub entrypoint: Vec<String>,
    /// Numeric, so that `runAsNonRoot` can be checked.
    pub user: String,
}

/// Files by absolute path. Missing parent folders are added.
#[derive(Debug, Clone, Default)]
pub struct Layer {
    entries: BTreeMap<PathBuf, Entry>,
}

/// What is at a path.
#[derive(Debug, Clone)]
pub enum Entry {
    /// A folder with these permissions.
    Folder(u32),
    /// A small file with these contents and permissions.
    Text(String, u32),
    /// A copy of a file of the host, executable, with file capabilities if any.
    Program(PathBuf, Option<Capabilities>),
}

/// File capabilities, as bits: an init container that is not root gets its rights from these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Bit set of permitted (and, with `effective`, at once effective) capabilities.
    pub permitted: u64,
    pub effective: bool,
}

impl Capabilities {
    /// `CAP_NET_ADMIN` and `CAP_NET_RAW`, effective at once.
    pub const NET_ADMIN_AND_RAW: Self = Self {
        permitted: 1 << 12 | 1 << 13,
        effective: true,
    };

    /// The kernel's `vfs_cap_data`, revision 2.
    fn to_xattr(self) -> Vec<u8> {
        let magic = 0x0200_0000_u32 | u32::from(self.effective);
        let low = u32::try_from(self.permitted & u64::from(u32::MAX)).expect("masked to 32 bits");
        let high = u32::try_from(self.permitted >> 32).expect("shifted to 32 bits");
        [magic, low, 0, high, 0]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect()
    }
}

impl Layer {
    /// Adds `entry` at the absolute `path`, replacing what was there.
    pub fn add(&mut self, path: impl Into<PathBuf>, entry: Entry) -> &mut Self {
        let path = path.into();
        for parent in path
            .ancestors()
            .skip(1)
            .filter(|parent| parent.parent().is_some())
        {
            self.entries
                .entry(parent.to_path_buf())
                .or_insert(Entry::Folder(0o755));
        }
        self.entries.insert(path, entry);
        self
    }

    /// Whether something is at `path`.
    pub fn contains(&self, path: &Path) -> bool {
        self.entries.contains_key(path)
    }

    /// Writes the layer's tar and returns its file, size and SHA-256.
    fn write(&self) -> Result<(File, u64, String)> {
        let file = tempfile::tempfile().context("failed to make a temporary file for an image layer")?;
        let mut tar = tar::Builder::new(Hashing {
            inner: BufWriter::new(file),
            hash: Sha256::new(),
        });
        for (path, entry) in &self.entries {
            append(&mut tar, path, entry)
                .with_context(|| format!("failed to add {} to an image", path.display()))?;
        }
        let Hashing { inner, hash } = tar.into_inner().context("failed to end an image layer")?;
        let mut file = inner.into_inner().context("failed to write an image layer")?;
        let size = file
            .stream_position()
            .context("failed to measure an image layer")?;
        file.rewind().context("failed to rewind an image layer")?;
        Ok((file, size, hex::encode(hash.finalize())))
    }
}

impl Image {
    /// Writes the image's tar to `path`, by way of a temporary file beside it.
    pub fn write(&self, path: &Path) -> Result<()> {
        let shown = || format!("failed to write the image {} to {}", self.name, path.display());
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).with_context(shown)?;
        let file = tempfile::NamedTempFile::new_in(folder).with_context(shown)?;
        self.write_to(BufWriter::new(file.as_file()))
            .with_context(shown)?;
        file.persist(path).with_context(shown)?;
        Ok(())
    }

    fn write_to(&self, out: impl Write) -> Result<()> {
        let mut tar = tar::Builder::new(out);
        let mut digests = Vec::new();
        for layer in &self.layers {
            let (file, size, digest) = layer.write()?;
            // Two layers may be the same; the tar must not name a file twice.
            if !digests.contains(&digest) {
                let mut header = header(tar::EntryType::Regular, 0o644, size);
                tar.append_data(&mut header, format!("{digest}/layer.tar"), BufReader::new(file))?;
            }
            digests.push(digest);
        }
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            // A fixed date: the same programs make the same image.
            "created": "1970-01-01T00:00:00Z",
            "config": {
                "Entrypoint": self.entrypoint,
                "User": self.user,
                "WorkingDir": "/",
                "Env": ["PATH=/usr/local/bin:/"],
            },
            "rootfs": {"type": "layers", "diff_ids": digests.iter().map(|digest| format!("sha256:{digest}")).collect::<Vec<_>>()},
        });
        let config = config.to_string();
        let config_name = format!("{}.json", hex::encode(Sha256::digest(&config)));
        let manifest = json!([{
            "Config": config_name,
            "RepoTags": [self.name],
            "Layers": digests.iter().map(|digest| format!("{digest}/layer.tar")).collect::<Vec<_>>(),
        }]);
        for (name, text) in [
            (config_name.as_str(), config),
            ("manifest.json", manifest.to_string()),
        ] {
            tar.append_data(
                &mut header(tar::EntryType::Regular, 0o644, text.len() as u64),
                name,
                text.as_bytes(),
            )?;
        }
        tar.into_inner()?.flush()?;
        Ok(())
    }
}

fn append(tar: &mut tar::Builder<impl Write>, path: &Path, entry: &Entry) -> Result<()> {
    let inside = path.strip_prefix("/").context("paths in an image are absolute")?;
    match entry {
        Entry::Folder(mode) => tar.append_data(
            &mut header(tar::EntryType::Directory, *mode, 0),
            inside,
            io::empty(),
        )?,
        Entry::Text(text, mode) => {
            let mut header = header(tar::EntryType::Regular, *mode, text.len() as u64);
            tar.append_data(&mut header, inside, text.as_bytes())?;
        }
        Entry::Program(source, capabilities) => {
            let file = File::open(source).with_context(|| format!("failed to open {}", source.display()))?;
            let size = file
                .metadata()
                .with_context(|| format!("failed to measure {}", source.display()))?
                .len();
            if let Some(capabilities) = capabilities {
                let value = capabilities.to_xattr();
                tar.append_pax_extensions([("SCHILY.xattr.security.capability", value.as_slice())])?;
            }
            // Bounded by the size in the header, should the file grow meanwhile.
            tar.append_data(
                &mut header(tar::EntryType::Regular, 0o755, size),
                inside,
                BufReader::new(file).take(size),
            )?;
        }
    }
    Ok(())
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}

/// The machine's name in images.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

struct Hashing<W> {
    inner: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(program: &Path) -> Image {
        let mut base = Layer::default();
        base.add("/tmp", Entry::Folder(0o1777))
            .add("/etc/passwd", Entry::Text("root:x:0:0::/:/\n".into(), 0o644));
        let mut programs = Layer::default();
        programs.add(
            "/tool",
            Entry::Program(program.into(), Some(Capabilities::NET_ADMIN_AND_RAW)),
        );
        Image {
            name: "example.org/tool:1".into(),
            layers: vec![base, programs],
            entrypoint: vec!["/tool".into()],
            user: "1".into(),
        }
    }

    #[test]
    fn the_same_programs_make_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("tool");
        fs::write(&program, "#!/bin/true").unwrap();
        let (one, two) = (folder.path().join("1.tar"), folder.path().join("2.tar"));
        image(&program).write(&one).unwrap();
        // Another age and another inode, the same contents.
        fs::remove_file(&program).unwrap();
        fs::write(&program, "#!/bin/true").unwrap();
        image(&program).write(&two).unwrap();
        assert_eq!(fs::read(one).unwrap(), fs::read(two).unwrap());
    }

    #[test]
    fn the_manifest_names_layers_that_are_there() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("tool");
        fs::write(&program, "x").unwrap();
        let path = folder.path().join("image.tar");
        image(&program).write(&path).unwrap();
        let (mut names, mut manifest) = (Vec::new(), String::new());
        for entry in tar::Archive::new(File::open(path).unwrap()).entries().unwrap() {
            let mut entry = entry.unwrap();
            names.push(entry.path().unwrap().to_string_lossy().into_owned());
            if names.last().unwrap() == "manifest.json" {
                entry.read_to_string(&mut manifest).unwrap();
            }
        }
        let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
        for layer in manifest[0]["Layers"]
            .as_array()
            .unwrap()
            .iter()
            .chain([&manifest[0]["Config"]])
        {
            assert!(
                names.iter().any(|name| name == layer.as_str().unwrap()),
                "{layer} not in {names:?}"
            );
        }
        assert_eq!(manifest[0]["RepoTags"][0], "example.org/tool:1");
    }

    #[test]
    fn parents_come_before_what_is_in_them() {
        let mut layer = Layer::default();
        layer.add("/a/b/c", Entry::Text(String::new(), 0o644));
        let paths: Vec<_> = layer.entries.keys().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/a", "/a/b", "/a/b/c"]);
    }

    #[test]
    fn capabilities_are_written_as_the_kernel_reads_them() {
        let value = Capabilities::NET_ADMIN_AND_RAW.to_xattr();
        assert_eq!(
            value,
            [1, 0, 0, 2, 0, 0x30, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        );
    }
}
