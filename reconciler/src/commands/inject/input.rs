//! Manifests in and out.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{
    cli::Failure,
    fault::{Fault, Faults},
    yaml,
};

/// A folder with more files than this is a mistake, such as `/`.
const FILES_MAX: usize = 10_000;

/// The form of printed manifests.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Output {
    Yaml,
    Json,
}

impl Output {
    /// The documents as text.
    pub(crate) fn print(self, documents: &[Value]) -> String {
        let mut out = String::new();
        for document in documents {
            match self {
                Self::Yaml => {
                    out.push_str("---\n");
                    out.push_str(&yaml::print(document));
                }
                Self::Json => out.push_str(&format!("{document:#}\n")),
            }
        }
        out
    }
}

/// All documents of a file, of a folder's YAML and JSON files in the order of their names, or of stdin.
pub(crate) fn read(name: &str) -> Result<Vec<Value>, Failure> {
    if name == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        return parse(name, &text);
    }
    if name.starts_with("http://") || name.starts_with("https://") {
        return Err(Failure::message(format!("{name} is no file"))
            .hint(format!("curl -fsSL {name} | heddle inject -")));
    }
    let mut documents = Vec::new();
    for path in files(Path::new(name))? {
        let text = std::fs::read_to_string(&path).map_err(|error| unreadable(&path, &error))?;
        documents.extend(parse(&path.display().to_string(), &text)?);
    }
    Ok(documents)
}

fn parse(name: &str, text: &str) -> Result<Vec<Value>, Failure> {
    let documents = yaml::parse_documents(text)
        .map_err(|error| Fault::new(name, format!("invalid YAML: {}", error.message)).at(error.place))
        .map_err(Faults::from)?;
    Ok(documents.into_iter().map(|document| document.value).collect())
}

/// The file itself, or what is below a folder.
fn files(root: &Path) -> Result<Vec<PathBuf>, Failure> {
    let is_manifest = |path: &Path| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("yaml" | "yml" | "json"))
    };
    let mut found = Vec::new();
    let mut folders = Vec::new();
    let about = std::fs::metadata(root).map_err(|error| unreadable(root, &error))?;
    match about.is_dir() {
        true => folders.push(root.to_owned()),
        false => found.push(root.to_owned()),
    }
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(|error| unreadable(&folder, &error))? {
            let entry = entry.map_err(|error| unreadable(&folder, &error))?;
            seen += 1;
            if seen > FILES_MAX {
                return Err(Failure::message(format!(
                    "{} holds more than {FILES_MAX} files",
                    root.display()
                )));
            }
            // Links are not followed: they may lead in circles.
            let kind = entry.file_type().map_err(|error| unreadable(&folder, &error))?;
            let path = entry.path();
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() && is_manifest(&path) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::message(format!("{} cannot be read: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_read_in_order() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            std::fs::write(path, text).expect("a file");
        };
        write("b.yaml", "b: 1\n---\nb: 2\n");
        write("a/x.json", "{\"a\": 1}");
        write("notes.txt", "{");
        let found = read(&folder.path().display().to_string()).expect("documents");
        let text: Vec<_> = found.iter().map(Value::to_string).collect();
        assert_eq!(text, [r#"{"a":1}"#, r#"{"b":1}"#, r#"{"b":2}"#]);
        assert_eq!(Output::Json.print(&found[..1]), "{\n  \"a\": 1\n}\n");
        assert!(read("https://example.com/x.yml").is_err());
        assert!(read("no-such-file.yaml").is_err());
    }
}
