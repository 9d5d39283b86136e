//! The installer on folders of its own: what a node's runtime would find at each moment.

use serde_json::json;

use super::*;

struct Node {
    _folder: tempfile::TempDir,
    target: Target,
}

impl Node {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        for name in ["net.d", "bin", "account", "config"] {
            fs::create_dir(at(name)).expect("a folder");
        }
        fs::write(at("account/token"), "first\n").expect("written");
        fs::write(at("account/ca.crt"), "-----BEGIN CERTIFICATE-----").expect("written");
        let entry = json!({"name": "linkerd-cni", "type": "linkerd-cni", "linkerd": {"proxy-uid": 2102}});
        fs::write(at("config/cni_network_config"), entry.to_string()).expect("written");
        let target = Target {
            net_dir: at("net.d"),
            host_net_dir: "/etc/cni/net.d".into(),
            bin_dir: at("bin"),
            config_file: at("config/cni_network_config"),
            service_account_dir: at("account"),
            server: Some("https://10.96.0.1:443".into()),
            kubeconfig_name: "ZZZ-linkerd-cni-kubeconfig".into(),
        };
        Self {
            _folder: folder,
            target,
        }
    }

    fn write(&self, name: &str, text: &Value) {
        fs::write(self.target.net_dir.join(name), text.to_string()).expect("written");
    }

    fn types(&self, name: &str) -> Vec<String> {
        let text = fs::read(self.target.net_dir.join(name)).expect("there");
        let document: Value = serde_json::from_slice(&text).expect("JSON");
        let plugins = document["plugins"].as_array().expect("a list");
        plugins
            .iter()
            .map(|plugin| plugin["type"].as_str().expect("a type").to_owned())
            .collect()
    }

    fn files(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(&self.target.net_dir)
            .expect("a folder")
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        names.sort();
        names
    }
}

fn list(types: &[&str]) -> Value {
    let plugins: Vec<_> = types.iter().map(|name| json!({"type": name})).collect();
    json!({"cniVersion": "1.0.0", "name": "n", "plugins": plugins})
}

#[test]
fn installs_once_and_removes_what_it_installed() {
    let node = Node::new();
    node.write("20-later.conflist", &list(&["bridge"]));
    node.write("10-first.conflist", &list(&["ptp", "portmap"]));
    assert!(verify(&node.target).is_err());
    assert_eq!(install(&node.target).expect("installed").len(), 3);
    assert_eq!(node.types("10-first.conflist"), ["ptp", "portmap", "linkerd-cni"]);
    assert_eq!(
        node.types("20-later.conflist"),
        ["bridge"],
        "the runtime takes the first alone"
    );
    verify(&node.target).expect("in place");
    assert_eq!(install(&node.target).expect("installed"), [] as [String; 0]);

    let kubeconfig =
        Kubeconfig::read(&node.target.net_dir.join("ZZZ-linkerd-cni-kubeconfig")).expect("written");
    assert_eq!(
        (kubeconfig.server.as_str(), kubeconfig.token.as_str()),
        ("https://10.96.0.1:443", "first")
    );
    fs::write(node.target.service_account_dir.join("token"), "second").expect("written");
    assert_eq!(
        install(&node.target).expect("installed").len(),
        1,
        "the new token"
    );

    remove(&node.target).expect("removed");
    assert_eq!(node.types("10-first.conflist"), ["ptp", "portmap"]);
    assert_eq!(node.files(), ["10-first.conflist", "20-later.conflist"]);
    assert!(!node.target.bin_dir.join(PLUGIN).exists());
    remove(&node.target).expect("removing again is no error");
}

#[test]
fn a_configuration_written_anew_gets_its_entry_back() {
    let node = Node::new();
    node.write("10-a.conflist", &list(&["ptp"]));
    install(&node.target).expect("installed");
    node.write("10-a.conflist", &list(&["ptp", "bandwidth"]));
    assert_eq!(install(&node.target).expect("installed").len(), 1);
    assert_eq!(node.types("10-a.conflist"), ["ptp", "bandwidth", "linkerd-cni"]);
    node.write("05-b.conflist", &list(&["cilium-cni"]));
    install(&node.target).expect("installed");
    assert_eq!(node.types("05-b.conflist"), ["cilium-cni", "linkerd-cni"]);
    remove(&node.target).expect("removed");
    assert_eq!(node.types("10-a.conflist"), ["ptp", "bandwidth"], "of all files");
}

#[test]
fn waits_for_a_network_and_passes_over_what_is_half_written() {
    let node = Node::new();
    assert!(matches!(install(&node.target), Err(InstallError::NoNetwork(_))));
    fs::write(node.target.net_dir.join("05-half.conflist"), "{\"plugins\": [").expect("written");
    assert!(matches!(install(&node.target), Err(InstallError::NoNetwork(_))));
    node.write(
        "10-old.conf",
        &json!({"cniVersion": "0.4.0", "name": "x", "type": "bridge"}),
    );
    install(&node.target).expect("installed");
    assert_eq!(node.types("10-old.conflist"), ["bridge", "linkerd-cni"]);
    assert_eq!(
        node.files(),
        [
            "05-half.conflist",
            "10-old.conflist",
            "ZZZ-linkerd-cni-kubeconfig"
        ]
    );
}

#[test]
fn an_owner_who_writes_meanwhile_wins() {
    let node = Node::new();
    let path = node.target.net_dir.join("10-a.conflist");
    node.write("10-a.conflist", &list(&["newer"]));
    let replaced = replace_unless_changed(&path, b"what we had read", &path, b"{}").expect("tried");
    assert_eq!(replaced, Replaced::No);
    assert_eq!(node.types("10-a.conflist"), ["newer"]);
    assert_eq!(node.files(), ["10-a.conflist"], "nothing is left behind");
}

#[test]
fn an_entry_of_another_type_is_refused_before_anything_changes() {
    let node = Node::new();
    node.write("10-a.conflist", &list(&["ptp"]));
    fs::write(&node.target.config_file, r#"{"type":"other"}"#).expect("written");
    assert!(matches!(install(&node.target), Err(InstallError::Entry { .. })));
    assert_eq!(node.types("10-a.conflist"), ["ptp"]);
}
