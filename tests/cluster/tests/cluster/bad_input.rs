//! Bad input: each mistake is named with file, object and field in the log, on the Mesh and as an Event, the last good
//! revision stays, and the next good commit is applied.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use heddle_tests_cluster::{
    heddle::{Heddle, Running},
    kubectl::Kubectl,
    repository::MeshRepository,
    story,
};
use heddle_tests_harness::{
    cluster::{ClusterOptions, Mode, ScopedCluster},
    wait::{self, Look},
};
use hyper::StatusCode;
use serde_json::Value;

use crate::stage::{kubectl, program};

const PROFILE: &str = "clusters/bad/mesh.yaml";
const POLICY: &str = "clusters/bad/policies/server.yaml";

const GOOD_PROFILE: &str = "\
apiVersion: heddle.dev/v1alpha1
kind: MeshProfile
metadata: {name: bad}
spec:
  extends: []
  policies: [./policies]
";

const GOOD_POLICY: &str = "\
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {name: web, namespace: default}
spec:
  podSelector: {matchLabels: {app: web}}
  port: 8080
";

/// A commit's changed file, and what the report must name.
struct Mistake {
    file: &'static str,
    text: String,
    named: &'static [&'static str],
}

fn mistakes() -> Vec<Mistake> {
    let profile = |from: &str, to: &str, named| Mistake {
        file: PROFILE,
        text: GOOD_PROFILE.replace(from, to),
        named,
    };
    let policy = |from: &str, to: &str, named| Mistake {
        file: POLICY,
        text: GOOD_POLICY.replace(from, to),
        named,
    };
    vec![
        profile(
            "  policies:",
            "  polices:",
            &["mesh.yaml:6", "polices", "policies"],
        ),
        profile("extends: []", "extends: {}", &["mesh.yaml:5", "extends"]),
        profile(
            "extends: []",
            "extends: [no-such-base]",
            &["mesh.yaml:5", "no-such-base"],
        ),
        profile("extends: []", "extends: [", &["mesh.yaml:"]),
        profile(
            "extends: []",
            "extends: [./base]",
            &["base/templates/config.yaml.hbs:4", "missing"],
        ),
        policy(
            "metadata: {name: web, namespace: default}",
            "metadata: {namespace: default}",
            &["server.yaml", "name"],
        ),
        policy("port: 8080", "port: 99999", &["server.yaml", "web", "port"]),
        policy("kind: Server", "kind: Serving", &["server.yaml", "Serving"]),
        policy(
            "  port: 8080",
            "  port: 8080\n  prot: 1",
            &["server.yaml", "web", "prot"],
        ),
    ]
}

/// A profile of the repository whose template asks for a value that nobody gives.
const BASE: [(&str, &str); 2] = [
    (
        "clusters/bad/base/profile.yaml",
        "apiVersion: heddle.dev/v1alpha1\nkind: Profile\nmetadata: {name: base}\nspec:\n  values: {}\n  schema: {type: object, properties: {}}\n",
    ),
    (
        "clusters/bad/base/templates/config.yaml.hbs",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, namespace: default}\ndata: {a: \"{{values.missing}}\"}\n",
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mistakes_are_named_and_the_last_good_revision_stays() -> Result<()> {
    let cluster = ScopedCluster::up(ClusterOptions::new("heddle-test-bad", Mode::ApiServerOnly)).await?;
    let kubectl = kubectl(&cluster)?;
    let heddle = Heddle::new(program("heddle")?, kubectl.kubeconfig());
    kubectl.apply(&heddle.stdout(&["install", "--crds"])?)?;
    kubectl.run(&[
        "wait",
        "--for=condition=Established",
        "crd",
        "--all",
        "--timeout=60s",
    ])?;
    let repository = MeshRepository::serve(Some(&cluster)).await?;
    let mut files = vec![(PROFILE, GOOD_PROFILE), (POLICY, GOOD_POLICY)];
    files.extend(BASE);
    let mut good = repository.commit(&files, "Good")?;
    let folder = tempfile::tempdir()?;
    let running = start(&heddle, &repository, folder.path())?;
    wait_ready(&kubectl, &running, &good).await?;

    for Mistake { file, text, named } in mistakes() {
        let was = if file == PROFILE {
            GOOD_PROFILE
        } else {
            GOOD_POLICY
        };
        ensure!(
            text != was,
            "the mistake that should name {named:?} changes nothing"
        );
        let bad = repository.commit(&[(file, &text)], "Bad")?;
        let message = wait_refused(&kubectl, &running, &bad).await?;
        for name in named {
            ensure!(
                message.contains(name),
                "the Mesh does not name `{name}`: {message}\nfor\n{text}"
            );
        }
        let applied = mesh(&kubectl)?["status"]["lastAppliedRevision"].to_string();
        ensure!(
            applied.contains(&good),
            "the last good revision {good} did not stay: {applied}"
        );
        let server = kubectl.get(&["server.policy.linkerd.io", "web"])?;
        ensure!(
            server["spec"]["port"] == 8080,
            "a part of a bad commit was applied: {server}"
        );
        let first = named.first().copied().unwrap_or_default();
        ensure!(
            running.log().contains(first),
            "the log does not name {first}:\n{}",
            running.log()
        );
        wait_event(&kubectl, first).await?;
        good = repository.commit(&[(file, was)], "Good again")?;
        wait_ready(&kubectl, &running, &good).await?;
    }
    links_are_refused(&kubectl, &running, &repository, &good).await?;
    unreachable_keeps_the_last_state(&kubectl, &running, &repository, &good).await
}

/// Symbolic links could point out of the repository. The way back is a force push, which is followed and said.
async fn links_are_refused(
    kubectl: &Kubectl,
    running: &Running,
    repository: &MeshRepository,
    good: &str,
) -> Result<()> {
    let link = repository.git().work().join("clusters/bad/policies/link.yaml");
    std::os::unix::fs::symlink("../../../../etc/passwd", &link).context("failed to make a symbolic link")?;
    let bad = repository.commit(&[], "A symbolic link")?;
    let message = wait_refused(kubectl, running, &bad).await?;
    ensure!(
        message.contains("link.yaml"),
        "the Mesh does not name the link: {message}"
    );
    repository.git().reset_to(good)?;
    wait_ready(kubectl, running, good).await?;
    ensure!(
        running.log().contains("pushed by force"),
        "the log does not speak of the force push:\n{}",
        running.log()
    );
    Ok(())
}

async fn unreachable_keeps_the_last_state(
    kubectl: &Kubectl,
    running: &Running,
    repository: &MeshRepository,
    good: &str,
) -> Result<()> {
    repository
        .server()
        .fail_with(Some(StatusCode::SERVICE_UNAVAILABLE));
    wait::until(
        "the Mesh to say that the repository does not answer",
        LIMIT,
        || async {
            match mesh(kubectl) {
                Ok(mesh) if message(&mesh).contains("503") => Look::Done(()),
                Ok(mesh) => Look::NotYet(mesh["status"].to_string()),
                Err(error) => Look::NotYet(error.to_string()),
            }
        },
    )
    .await?;
    ensure!(
        mesh(kubectl)?["status"]["lastAppliedRevision"]
            .to_string()
            .contains(good),
        "the applied revision is lost"
    );
    repository.server().fail_with(None);
    let next = repository.commit(&[(POLICY, &GOOD_POLICY.replace("8080", "8081"))], "Back again")?;
    wait_ready(kubectl, running, &next).await
}

const LIMIT: Duration = Duration::from_secs(60);

fn start(heddle: &Heddle, repository: &MeshRepository, folder: &Path) -> Result<Running> {
    let (url, cache) = (repository.url(), folder.join("cache"));
    let cache = cache.to_str().context("temporary folders have UTF-8 names")?;
    let arguments = [
        "run",
        "--repo",
        &url,
        "--ref",
        "main",
        "--path",
        "clusters/bad",
        "--interval",
        "1s",
    ];
    let more = ["--admin-addr", "127.0.0.1:19993", "--cache-dir", cache];
    heddle.start(&[&arguments[..], &more[..]].concat(), &folder.join("log"))
}

fn mesh(kubectl: &Kubectl) -> Result<Value> {
    kubectl.get(&["mesh.heddle.dev", "bad"])
}

/// The messages of all conditions.
fn message(mesh: &Value) -> String {
    let conditions = mesh["status"]["conditions"].as_array();
    let messages = conditions
        .into_iter()
        .flatten()
        .filter_map(|condition| condition["message"].as_str());
    messages.collect::<Vec<_>>().join("\n")
}

fn ready(mesh: &Value) -> Option<&str> {
    let mut conditions = mesh["status"]["conditions"].as_array()?.iter();
    conditions.find(|condition| condition["type"] == "Ready")?["status"].as_str()
}

async fn wait_ready(kubectl: &Kubectl, running: &Running, commit: &str) -> Result<()> {
    let waited = wait::until(format!("Mesh bad to be Ready at {commit}"), LIMIT, || async {
        match mesh(kubectl) {
            Ok(mesh)
                if ready(&mesh) == Some("True")
                    && mesh["status"]["lastAppliedRevision"].to_string().contains(commit) =>
            {
                Look::Done(())
            }
            Ok(mesh) => Look::NotYet(mesh["status"].to_string()),
            Err(error) => Look::NotYet(error.to_string()),
        }
    })
    .await;
    waited.with_context(|| format!("the reconciler's log:\n{}", running.log()))
}

/// Waits until the Mesh says that it could not apply `commit`; returns what it says.
async fn wait_refused(kubectl: &Kubectl, running: &Running, commit: &str) -> Result<String> {
    let waited = wait::until(format!("Mesh bad to refuse {commit}"), LIMIT, || async {
        match mesh(kubectl) {
            Ok(mesh)
                if ready(&mesh) == Some("False")
                    && mesh["status"]["lastAttemptedRevision"]
                        .to_string()
                        .contains(commit) =>
            {
                Look::Done(message(&mesh))
            }
            Ok(mesh) => Look::NotYet(mesh["status"].to_string()),
            Err(error) => Look::NotYet(error.to_string()),
        }
    })
    .await;
    waited.with_context(|| format!("the reconciler's log:\n{}", running.log()))
}

async fn wait_event(kubectl: &Kubectl, named: &str) -> Result<()> {
    wait::until(format!("an Event that names {named}"), LIMIT, || async {
        match story::events(kubectl, "bad") {
            Ok(events) if events.iter().any(|event| event.contains(named)) => Look::Done(()),
            Ok(events) => Look::NotYet(events.join("\n")),
            Err(error) => Look::NotYet(error.to_string()),
        }
    })
    .await?;
    Ok(())
}
