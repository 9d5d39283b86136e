//! `heddle uninject FILE`: manifests as they were before injection, without what asks for it.

use serde_json::Value;

use super::inject::{
    input::{self, Output},
    sidecar::{self, Depth, template_path},
};
use crate::{
    cli::{Outcome, say},
    object,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The manifests: a file, a folder with all that is below it, or - for stdin.
    file: String,
    /// The form of what is printed.
    #[arg(short, long, value_enum, default_value_t = Output::Yaml)]
    output: Output,
}

pub fn run(args: Args) -> Outcome {
    let mut documents = input::read(&args.file)?;
    for document in &mut documents {
        uninject(document, &mut |text| say(&text));
    }
    crate::cli::print(&args.output.print(&documents))?;
    Ok(0)
}

fn uninject(value: &mut Value, said: &mut impl FnMut(String)) {
    let kind = object::text_at(value, &["kind"]).unwrap_or_default().to_owned();
    if kind == "List" {
        let items = value.get_mut("items").and_then(Value::as_array_mut);
        for item in items.into_iter().flatten() {
            uninject(item, said);
        }
        return;
    }
    let name = object::text_at(value, &["metadata", "name"]).unwrap_or_default();
    let object = format!("{} \"{name}\"", kind.to_lowercase());
    let changed = match (template_path(&kind), kind.as_str()) {
        (Some(path), _) => path
            .iter()
            .try_fold(value, |value, key| value.get_mut(*key))
            .is_some_and(|template| sidecar::remove(template, Depth::Everything)),
        (None, "Namespace" | "Service") => {
            let before = value.clone();
            sidecar::remove_marks(value, Depth::Everything);
            *value != before
        }
        (None, _) => false,
    };
    said(format!(
        "{object} {}",
        if changed { "uninjected" } else { "skipped" }
    ));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_of_a_list_is_cleaned() {
        let mut list = json!({"kind": "List", "items": [
            {"kind": "Deployment", "metadata": {"name": "web"}, "spec": {"template": {
                "metadata": {"annotations": {"linkerd.io/inject": "enabled", "config.linkerd.io/proxy-log-level": "debug", "a": "b"}},
                "spec": {
                    "containers": [{"name": "app"}, {"name": "linkerd-proxy"}],
                    "initContainers": [{"name": "linkerd-init"}],
                    "volumes": [{"name": "linkerd-identity-token"}, {"name": "data"}],
                },
            }}},
            {"kind": "Namespace", "metadata": {"name": "n", "annotations": {"linkerd.io/inject": "enabled"}}},
            {"kind": "ConfigMap", "metadata": {"name": "c", "annotations": {"linkerd.io/x": "y"}}},
        ]});
        let mut said = Vec::new();
        uninject(&mut list, &mut |text| said.push(text));
        assert_eq!(
            said,
            [
                "deployment \"web\" uninjected",
                "namespace \"n\" uninjected",
                "configmap \"c\" skipped"
            ]
        );
        assert_eq!(
            list["items"][0]["spec"]["template"],
            json!({
                "metadata": {"annotations": {"a": "b"}},
                "spec": {"containers": [{"name": "app"}], "volumes": [{"name": "data"}]},
            })
        );
        assert_eq!(list["items"][1]["metadata"], json!({"name": "n"}));
        assert_eq!(
            list["items"][2]["metadata"]["annotations"],
            json!({"linkerd.io/x": "y"})
        );
    }
}
