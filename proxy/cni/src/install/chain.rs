//! Network configurations as lists of plugins, with ours as the last, or without it. Apart from listing a folder, pure.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::InstallError;
use crate::PLUGIN;

/// The extension of lists; the others hold one plugin each.
pub(super) const LIST_EXTENSION: &str = "conflist";
/// What container runtimes read.
const EXTENSIONS: [&str; 3] = ["conf", LIST_EXTENSION, "json"];

/// A list of plugins.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct List {
    document: Value,
    /// Whether the file held one plugin only, so that it changes by becoming a list.
    single: bool,
}

/// The files that a runtime may take, in the order in which it does.
pub(super) fn candidates(folder: &Path) -> Result<Vec<PathBuf>, InstallError> {
    let error = |source| InstallError::File {
        action: "list",
        path: folder.to_owned(),
        source,
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(error)? {
        let path = entry.map_err(error)?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if extension.is_some_and(|extension| EXTENSIONS.contains(&extension)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

impl List {
    /// Reads a file's text; its name tells a list from a single plugin.
    pub(super) fn parse(path: &Path, text: &[u8]) -> Result<Self, String> {
        let document: Value =
            serde_json::from_slice(text).map_err(|error| format!("it is no JSON: {error}"))?;
        let list = path
            .extension()
            .is_some_and(|extension| extension == LIST_EXTENSION);
        if list {
            return match document.get("plugins") {
                Some(Value::Array(plugins)) if !plugins.is_empty() => Ok(Self {
                    document,
                    single: false,
                }),
                _ => Err("it has no list of plugins".into()),
            };
        }
        match document.get("type").and_then(Value::as_str) {
            None => Err("it names no plugin".into()),
            Some(PLUGIN) => Err("this plugin cannot stand alone".into()),
            Some(_) => {
                let mut outer = json!({"plugins": [document]});
                for key in ["name", "cniVersion"] {
                    if let Some(value) = outer["plugins"][0].get(key).cloned() {
                        outer[key] = value;
                    }
                }
                Ok(Self {
                    document: outer,
                    single: true,
                })
            }
        }
    }

    /// The text with `entry` as the last plugin; None: it is so already.
    pub(super) fn with(&self, entry: &Value) -> Option<Vec<u8>> {
        let mut plugins = self.others();
        plugins.push(entry.clone());
        self.changed(plugins)
    }

    /// The text without our plugin; None: it is so already.
    pub(super) fn without(&self) -> Option<Vec<u8>> {
        self.changed(self.others()).filter(|_| !self.single)
    }

    fn plugins(&self) -> &[Value] {
        self.document["plugins"].as_array().map_or(&[], Vec::as_slice)
    }

    fn others(&self) -> Vec<Value> {
        let ours = |plugin: &&Value| plugin["type"] != PLUGIN;
        self.plugins().iter().filter(ours).cloned().collect()
    }

    fn changed(&self, plugins: Vec<Value>) -> Option<Vec<u8>> {
        if !self.single && plugins == self.plugins() {
            return None;
        }
        let mut document = self.document.clone();
        document["plugins"] = plugins.into();
        Some(format!("{document:#}\n").into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str, text: &Value) -> Result<List, String> {
        List::parse(Path::new(name), text.to_string().as_bytes())
    }

    fn value(text: Option<Vec<u8>>) -> Value {
        serde_json::from_slice(&text.expect("changed")).expect("JSON")
    }

    #[test]
    fn the_plugin_becomes_the_last_of_a_list_once() {
        let own = json!({"type": "linkerd-cni", "linkerd": {}});
        let original = json!({
            "cniVersion": "1.0.0", "name": "k8s", "disableCheck": true,
            "plugins": [{"type": "ptp", "mtu": 1450}, {"type": "portmap"}],
        });
        let list = parse("10-a.conflist", &original).expect("a list");
        let with = value(list.with(&own));
        let mut expected = original.clone();
        expected["plugins"] = json!([{"type": "ptp", "mtu": 1450}, {"type": "portmap"}, own]);
        assert_eq!(with, expected);

        let list = parse("10-a.conflist", &with).expect("a list");
        assert_eq!(list.with(&own), None, "it is there already");
        assert_eq!(value(list.without()), original);
        let newer = json!({"type": "linkerd-cni", "linkerd": {"proxy-uid": 7}});
        let types = value(list.with(&newer));
        assert_eq!(
            types["plugins"][2], newer,
            "other settings take the old ones' place"
        );
        assert_eq!(types["plugins"].as_array().map(Vec::len), Some(3));
    }

    #[test]
    fn a_plugin_that_is_not_the_last_is_moved() {
        let own = json!({"type": "linkerd-cni"});
        let list = parse(
            "a.conflist",
            &json!({"plugins": [{"type": "ptp"}, own, {"type": "portmap"}]}),
        );
        let with = value(list.expect("a list").with(&own));
        assert_eq!(
            with["plugins"],
            json!([{"type": "ptp"}, {"type": "portmap"}, {"type": "linkerd-cni"}])
        );
    }

    #[test]
    fn a_single_plugin_becomes_a_list() {
        let single = json!({"cniVersion": "0.3.1", "name": "mynet", "type": "bridge"});
        let list = parse("10-b.conf", &single).expect("a plugin");
        let with = value(list.with(&json!({"type": "linkerd-cni"})));
        assert_eq!(
            with,
            json!({"cniVersion": "0.3.1", "name": "mynet", "plugins": [single, {"type": "linkerd-cni"}]})
        );
        assert_eq!(list.without(), None, "there is nothing of ours in it");
    }

    #[test]
    fn what_is_no_network_is_said() {
        for (name, text) in [
            ("a.conflist", json!({"plugins": []})),
            ("a.conflist", json!({"type": "ptp"})),
            ("a.conf", json!({"name": "x"})),
            ("a.conf", json!({"type": "linkerd-cni"})),
            ("a.conf", json!(7)),
        ] {
            parse(name, &text).expect_err("no network");
        }
        List::parse(Path::new("a.conf"), b"{\"type\":").expect_err("half-written");
    }
}
