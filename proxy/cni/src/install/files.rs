//! Files that others read at any moment: replaced as a whole, or not at all.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use super::InstallError;
use crate::PLUGIN;

/// Network configurations are a few kilobytes.
const BYTES_MAX: u64 = 1 << 20;

/// Whether a file was replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Replaced {
    Yes,
    No,
}

/// A file's bytes; None when there is none (any more).
pub(super) fn read_bounded(path: &Path) -> Result<Option<Vec<u8>>, InstallError> {
    let read = || {
        let mut bytes = Vec::new();
        File::open(path)?.take(BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > BYTES_MAX {
            let text = format!("it is larger than {BYTES_MAX} bytes");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(InstallError::File {
            action: "read",
            path: path.to_owned(),
            source,
        }),
    }
}

/// Makes `path` hold `bytes` with this mode; no, when it does already.
pub(super) fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<Replaced, InstallError> {
    let same = fs::metadata(path).is_ok_and(|found| {
        found.is_file() && found.permissions().mode() & 0o7777 == mode && found.len() == bytes.len() as u64
    });
    if same && fs::read(path).is_ok_and(|found| found == bytes) {
        return Ok(Replaced::No);
    }
    let temporary = write_beside(path, bytes, mode)?;
    rename(&temporary, path)?;
    Ok(Replaced::Yes)
}

/// Makes `target` hold `bytes`, with the mode of `source`, unless `source` holds something else than `expected` by now.
pub(super) fn replace_unless_changed(
    source: &Path,
    expected: &[u8],
    target: &Path,
    bytes: &[u8],
) -> Result<Replaced, InstallError> {
    let mode = fs::metadata(source).map_or(0o644, |found| found.permissions().mode() & 0o7777);
    let temporary = write_beside(target, bytes, mode)?;
    if read_bounded(source)?.as_deref() != Some(expected) {
        super::delete(&temporary)?;
        return Ok(Replaced::No);
    }
    rename(&temporary, target)?;
    Ok(Replaced::Yes)
}

/// Writes a file beside `path` under a name that no runtime reads.
fn write_beside(path: &Path, bytes: &[u8], mode: u32) -> Result<PathBuf, InstallError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{PLUGIN}-new"));
    let write = || {
        // Credentials must not be readable even for a moment.
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()
    };
    write().map_err(|source| InstallError::File {
        action: "write",
        path: temporary.clone(),
        source,
    })?;
    Ok(temporary)
}

fn rename(from: &Path, to: &Path) -> Result<(), InstallError> {
    fs::rename(from, to).map_err(|source| InstallError::File {
        action: "replace",
        path: to.to_owned(),
        source,
    })
}
