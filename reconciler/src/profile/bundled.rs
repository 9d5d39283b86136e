//! The profiles that are part of the binary.

use std::{collections::BTreeMap, path::Path};

use include_dir::{Dir, include_dir};

use crate::source::SourceError;

static PROFILES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../profiles");

/// Profiles by name; each a map of file to text.
#[derive(Clone, Debug)]
pub struct Bundled(BTreeMap<String, BTreeMap<String, String>>);

impl Bundled {
    /// The profiles in the binary.
    pub fn embedded() -> Self {
        let mut profiles = BTreeMap::new();
        for folder in PROFILES.dirs() {
            let mut files = BTreeMap::new();
            collect(folder, folder.path(), &mut files);
            profiles.insert(folder.path().display().to_string(), files);
        }
        Self(profiles)
    }

    /// Profiles in a folder on disk, for work on the profiles themselves.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn from_folder(folder: &Path) -> Result<Self, SourceError> {
        let tree = crate::source::directory::snapshot(folder, "", crate::source::Limits::default())?.tree;
        let mut profiles: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for (path, bytes) in tree.files("")? {
            let (Some((name, file)), Ok(text)) = (path.split_once('/'), std::str::from_utf8(&bytes)) else {
                continue;
            };
            profiles
                .entry(name.to_owned())
                .or_default()
                .insert(file.to_owned(), text.to_owned());
        }
        Ok(Self(profiles))
    }

    /// Profiles given as text, for tests.
    pub fn from_files<'a>(files: impl IntoIterator<Item = (&'a str, &'a str, &'a str)>) -> Self {
        let mut profiles: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for (name, file, text) in files {
            profiles
                .entry(name.to_owned())
                .or_default()
                .insert(file.to_owned(), text.to_owned());
        }
        Self(profiles)
    }

    /// A profile's files.
    pub fn get(&self, name: &str) -> Option<&BTreeMap<String, String>> {
        self.0.get(name)
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

fn collect(folder: &Dir<'_>, root: &Path, files: &mut BTreeMap<String, String>) {
    for file in folder.files() {
        let path = file.path().strip_prefix(root).unwrap_or(file.path());
        if let Some(text) = file.contents_utf8() {
            files.insert(path.display().to_string(), text.to_owned());
        }
    }
    folder.dirs().for_each(|inner| collect(inner, root, files));
}
