//! A folder on disk as a source. Its revision is the SHA-256 of its files' names and contents, so that touching a file
//! without changing it is no new revision.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use sha2::{Digest as _, Sha256};

use super::{
    Files, Limits, Revision, Snapshot, SourceError, Tree, clean_path,
    limits::{Budget, refused},
    memory::MemoryTree,
};

/// Reads what lies under `path` of the folder. Names that begin with a dot (`.git`, the `..data` of mounted ConfigMaps)
/// are left out; but the links that Kubernetes makes for ConfigMap keys, which point into the same folder, are followed.
///
/// # Errors
/// A folder that cannot be read, symlinks that lead outside, and what [`Limits`] refuse.
pub fn snapshot(folder: &Path, path: &str, limits: Limits) -> Result<Snapshot, SourceError> {
    let root = folder.canonicalize().map_err(|source| io(folder, source))?;
    let files = read(&root, path, limits)?;
    let mut hash = Sha256::new();
    for (path, bytes) in &files {
        hash.update((path.len() as u64).to_be_bytes());
        hash.update(path);
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    }
    let revision = Revision {
        name: String::new(),
        digest: format!("sha256:{}", hex::encode(hash.finalize())),
    };
    let tree = DirectoryTree {
        root,
        prefix: path.to_owned(),
        files: MemoryTree(files),
        limits,
    };
    Ok(Snapshot {
        revision,
        tree: Arc::new(tree),
    })
}

/// What lay under the path when the snapshot was taken; the rest of the folder, which only profiles elsewhere in the
/// repository need, is read when asked for.
struct DirectoryTree {
    root: PathBuf,
    prefix: String,
    files: MemoryTree,
    limits: Limits,
}

impl Tree for DirectoryTree {
    fn files(&self, path: &str) -> Result<Files, SourceError> {
        let path = clean_path(path)?;
        let inside =
            self.prefix.is_empty() || path == self.prefix || path.starts_with(&format!("{}/", self.prefix));
        if inside {
            self.files.files(&path)
        } else {
            read(&self.root, &path, self.limits)
        }
    }
}

fn read(root: &Path, path: &str, limits: Limits) -> Result<Files, SourceError> {
    let mut files = Files::new();
    let mut budget = Budget::new(limits);
    let mut at = root.to_owned();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        at.push(part);
        let Ok(meta) = fs::symlink_metadata(&at) else {
            return Err(SourceError::NotFound {
                path: path.to_owned(),
                revision: root.display().to_string(),
            });
        };
        if meta.is_symlink() && mounted_key(root, &at).is_none() {
            return Err(refused(path, "symlinks are not followed"));
        }
    }
    if at.is_file() {
        let bytes = fs::read(&at).map_err(|source| io(&at, source))?;
        budget.file(path, bytes.len())?;
        files.insert(path.to_owned(), Arc::from(bytes));
    } else {
        walk(root, &at, path, 0, &mut budget, &mut files)?;
    }
    Ok(files)
}

fn walk(
    root: &Path,
    folder: &Path,
    prefix: &str,
    depth: usize,
    budget: &mut Budget,
    files: &mut Files,
) -> Result<(), SourceError> {
    budget.enter(prefix, depth)?;
    let mut entries: Vec<_> = fs::read_dir(folder)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|source| io(folder, source))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            return Err(refused(prefix, "a file name is not UTF-8"));
        };
        if name.starts_with('.') {
            continue;
        }
        let path = if prefix.is_empty() {
            name.to_owned()
        } else {
            format!("{prefix}/{name}")
        };
        let on_disk = entry.path();
        let mut kind = entry.file_type().map_err(|source| io(&on_disk, source))?;
        if kind.is_symlink() {
            kind = mounted_key(root, &on_disk).ok_or_else(|| refused(&path, "symlinks are not followed"))?;
        }
        if kind.is_dir() {
            walk(root, &on_disk, &path, depth + 1, budget, files)?;
        } else if kind.is_file() {
            let size = fs::metadata(&on_disk)
                .map_err(|source| io(&on_disk, source))?
                .len();
            budget.file(&path, usize::try_from(size).unwrap_or(usize::MAX))?;
            let bytes = fs::read(&on_disk).map_err(|source| io(&on_disk, source))?;
            files.insert(path, Arc::from(bytes));
        }
    }
    Ok(())
}

/// The type of what a ConfigMap's link (`key -> ..data/key`) points to; `None` for any other symlink.
fn mounted_key(root: &Path, link: &Path) -> Option<fs::FileType> {
    let target = fs::read_link(link).ok()?;
    if target.components().next()?.as_os_str() != "..data" {
        return None;
    }
    let real = link.canonicalize().ok().filter(|real| real.starts_with(root))?;
    fs::metadata(real)
        .ok()
        .map(|meta| meta.file_type())
        .filter(fs::FileType::is_file)
}

fn io(path: &Path, source: std::io::Error) -> SourceError {
    SourceError::Folder {
        path: PathBuf::from(path).display().to_string(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_contents_have_one_revision() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("a")).unwrap();
        fs::write(folder.path().join("a/mesh.yaml"), "x: 1\n").unwrap();
        fs::write(folder.path().join(".hidden"), "x").unwrap();
        let first = snapshot(folder.path(), "", Limits::default()).unwrap();
        fs::write(folder.path().join("a/mesh.yaml"), "x: 1\n").unwrap();
        assert_eq!(
            snapshot(folder.path(), "", Limits::default()).unwrap().revision,
            first.revision
        );
        assert_eq!(
            first.tree.files("").unwrap().keys().collect::<Vec<_>>(),
            ["a/mesh.yaml"]
        );
        fs::write(folder.path().join("a/mesh.yaml"), "x: 2\n").unwrap();
        assert_ne!(
            snapshot(folder.path(), "", Limits::default()).unwrap().revision,
            first.revision
        );
    }

    #[test]
    fn symlinks_are_refused_but_mounted_keys_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("..2026");
        fs::create_dir(&data).unwrap();
        fs::write(data.join("mesh.yaml"), "x: 1\n").unwrap();
        std::os::unix::fs::symlink("..2026", folder.path().join("..data")).unwrap();
        std::os::unix::fs::symlink("..data/mesh.yaml", folder.path().join("mesh.yaml")).unwrap();
        assert_eq!(
            snapshot(folder.path(), "", Limits::default())
                .unwrap()
                .tree
                .files("mesh.yaml")
                .unwrap()
                .len(),
            1
        );
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join("x.yaml")).unwrap();
        let error = snapshot(folder.path(), "", Limits::default()).unwrap_err();
        assert_eq!(error.to_string(), "x.yaml: symlinks are not followed");
    }
}
