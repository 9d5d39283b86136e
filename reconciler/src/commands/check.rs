//! `heddle check [--pre]`: whether the cluster can take the mesh, or the mesh is well. Categories are Linkerd's.

use std::{fmt::Write as _, io::IsTerminal as _, time::Duration};

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::{Api, api::PostParams};
use serde_json::Value;
use tokio::time::Instant;

use crate::{
    certificates,
    cli::{Failure, Global, Outcome},
    cluster::Cluster,
    commands::connect,
    identity,
    object::{self, ObjectId},
    observe, plan,
    readiness::{self, Readiness},
    rollout::{self, Verdict},
};

/// How often `--wait` looks.
const POLL: Duration = Duration::from_secs(1);
/// Kubernetes versions whose native sidecars work.
const MINOR_MIN: u32 = 29;
/// The control plane's workloads.
const COMPONENTS: [&str; 3] = [
    "linkerd-destination",
    "linkerd-identity",
    "linkerd-proxy-injector",
];

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Check whether the mesh can be installed.
    #[arg(long)]
    pre: bool,
    /// Check the proxies too.
    #[arg(long)]
    proxy: bool,
    /// Check the CNI plugin, also when the mesh does not say that it uses one.
    #[arg(long)]
    linkerd_cni_enabled: bool,
    /// The CNI plugin's namespace.
    #[arg(long, value_name = "NAMESPACE", default_value = "linkerd-cni")]
    cni_namespace: String,
    /// With --proxy: only pods of this namespace.
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Try again for so long while something fails.
    #[arg(long, default_value = "0s", value_name = "DURATION", value_parser = heddle_mesh::duration::parse)]
    wait: Duration,
    /// The form of the output.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Table,
    /// Only what is not well.
    Short,
    Json,
}

/// One check and how it went.
struct Check {
    category: &'static str,
    description: String,
    result: Finding,
}

enum Finding {
    Ok,
    Warning(String),
    Failed(String),
}

type Found = Result<Finding, String>;

pub fn run(global: &Global, args: Args) -> Outcome {
    super::block_on(async {
        let deadline = Instant::now() + args.wait;
        let checks = loop {
            let checks = all(global, &args).await;
            let failed = checks
                .iter()
                .any(|check| matches!(check.result, Finding::Failed(_)));
            if !failed || Instant::now() >= deadline {
                break checks;
            }
            tokio::time::sleep(POLL).await;
        };
        let failed = checks
            .iter()
            .any(|check| matches!(check.result, Finding::Failed(_)));
        crate::cli::print(&show(
            &checks,
            args.output,
            std::io::stdout().is_terminal(),
            failed,
        ))?;
        Ok::<u8, Failure>(u8::from(failed))
    })
}

fn show(checks: &[Check], format: Format, fancy: bool, failed: bool) -> String {
    if format == Format::Json {
        let items: Vec<_> = checks
            .iter()
            .map(|check| {
                let (result, error) = match &check.result {
                    Finding::Ok => ("success", None),
                    Finding::Warning(text) => ("warning", Some(text)),
                    Finding::Failed(text) => ("error", Some(text)),
                };
                serde_json::json!({"category": check.category, "description": check.description, "result": result, "error": error})
            })
            .collect();
        return format!("{:#}\n", serde_json::json!({"success": !failed, "checks": items}));
    }
    let mut text = String::new();
    let mut category = "";
    for check in checks
        .iter()
        .filter(|check| format == Format::Table || !matches!(check.result, Finding::Ok))
    {
        if check.category != category {
            category = check.category;
            let _ = writeln!(
                text,
                "{}{category}\n{}",
                if text.is_empty() { "" } else { "\n" },
                "-".repeat(category.len())
            );
        }
        let (sign, more) = match &check.result {
            Finding::Ok => (if fancy { "✔" } else { "ok  " }, None),
            Finding::Warning(more) => (if fancy { "‼" } else { "warn" }, Some(more)),
            Finding::Failed(more) => (if fancy { "✖" } else { "FAIL" }, Some(more)),
        };
        let _ = writeln!(text, "{sign} {}", check.description);
        for line in more.into_iter().flat_map(|more| more.lines()) {
            let _ = writeln!(text, "    {line}");
        }
    }
    let _ = writeln!(
        text,
        "\nStatus check results are {}",
        if failed { "failed" } else { "ok" }
    );
    text
}

/// Collects findings of one run.
struct Book(Vec<Check>);

impl Book {
    fn note(&mut self, category: &'static str, description: impl Into<String>, found: Found) -> bool {
        let result = found.unwrap_or_else(Finding::Failed);
        let well = !matches!(result, Finding::Failed(_));
        self.0.push(Check {
            category,
            description: description.into(),
            result,
        });
        well
    }
}

async fn all(global: &Global, args: &Args) -> Vec<Check> {
    let mut book = Book(Vec::new());
    let cluster = match connect(global).await {
        Ok(cluster) => cluster,
        Err(failure) => {
            let hint = failure
                .hint
                .map(|hint| format!("\nhint: {hint}"))
                .unwrap_or_default();
            book.note(
                "kubernetes-api",
                "can query the Kubernetes API",
                Err(format!("{}{hint}", crate::cli::chain(failure.error.as_ref()))),
            );
            return book.0;
        }
    };
    book.note("kubernetes-api", "can query the Kubernetes API", Ok(Finding::Ok));
    book.note(
        "kubernetes-version",
        format!("is running Kubernetes 1.{MINOR_MIN} or newer"),
        version(&cluster).await,
    );
    if args.pre {
        pre(&mut book, &cluster, &global.linkerd_namespace).await;
        return book.0;
    }
    installed(&mut book, &cluster, &global.linkerd_namespace, args).await;
    if args.proxy || args.namespace.is_some() {
        proxies(&mut book, &cluster, global, args.namespace.as_deref()).await;
    }
    book.0
}

async fn version(cluster: &Cluster) -> Found {
    let version = cluster
        .client
        .apiserver_version()
        .await
        .map_err(|error| crate::cli::chain(&error))?;
    let digits: String = version.minor.chars().take_while(char::is_ascii_digit).collect();
    match digits.parse::<u32>() {
        Ok(minor) if version.major != "1" || minor >= MINOR_MIN => Ok(Finding::Ok),
        Ok(_) => Err(format!(
            "found {}: proxies are native sidecars, which need 1.{MINOR_MIN}",
            version.git_version
        )),
        Err(_) => Ok(Finding::Warning(format!(
            "the version `{}` is not understood",
            version.git_version
        ))),
    }
}

/// The control plane's webhooks: what Linkerd calls each, and its configuration.
const WEBHOOKS: [(&str, &str, &str); 3] = [
    (
        "proxy-injector",
        "MutatingWebhookConfiguration",
        "linkerd-proxy-injector-webhook-config",
    ),
    (
        "sp-validator",
        "ValidatingWebhookConfiguration",
        "linkerd-sp-validator-webhook-config",
    ),
    (
        "policy-validator",
        "ValidatingWebhookConfiguration",
        "linkerd-policy-validator-webhook-config",
    ),
];

/// What the installation creates: group, plural, whether in the control plane's namespace.
const CREATED: [(&str, &str, bool); 11] = [
    ("", "namespaces", false),
    ("apiextensions.k8s.io", "customresourcedefinitions", false),
    ("rbac.authorization.k8s.io", "clusterroles", false),
    ("rbac.authorization.k8s.io", "clusterrolebindings", false),
    (
        "admissionregistration.k8s.io",
        "mutatingwebhookconfigurations",
        false,
    ),
    (
        "admissionregistration.k8s.io",
        "validatingwebhookconfigurations",
        false,
    ),
    ("", "serviceaccounts", true),
    ("", "services", true),
    ("", "secrets", true),
    ("", "configmaps", true),
    ("apps", "deployments", true),
];

async fn pre(book: &mut Book, cluster: &Cluster, namespace: &str) {
    const CATEGORY: &str = "pre-kubernetes-setup";
    let id = ObjectId::new("", "Namespace", "", namespace);
    let exists = match cluster.kind_of(&id).await {
        Some(kind) => cluster
            .get(&kind, &id)
            .await
            .map_err(|error| crate::cli::chain(&error)),
        None => Err("the API server knows no namespaces".to_owned()),
    };
    let found = exists.map(|live| match live {
        None => Finding::Ok,
        Some(_) => Finding::Warning(format!(
            "the namespace {namespace} exists: an installation would change what is in it"
        )),
    });
    book.note(CATEGORY, "control plane namespace does not already exist", found);
    for (group, plural, namespaced) in CREATED {
        let api: Api<SelfSubjectAccessReview> = Api::all(cluster.client.clone());
        let attributes = ResourceAttributes {
            group: Some(group.to_owned()),
            resource: Some(plural.to_owned()),
            verb: Some("create".to_owned()),
            namespace: namespaced.then(|| namespace.to_owned()),
            ..ResourceAttributes::default()
        };
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(attributes),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let found = match api.create(&PostParams::default(), &review).await {
            Ok(answer) if answer.status.as_ref().is_some_and(|status| status.allowed) => Ok(Finding::Ok),
            Ok(_) => Err(format!("this account may not create {plural}")),
            Err(error) => Err(crate::cli::chain(&error)),
        };
        let name = plural.strip_suffix('s').unwrap_or(plural);
        book.note(CATEGORY, format!("can create {name}s"), found);
    }
}

async fn get(cluster: &Cluster, id: &ObjectId) -> Result<Option<Value>, String> {
    let Some(kind) = cluster.kind_of(id).await else {
        return Ok(None);
    };
    cluster
        .get(&kind, id)
        .await
        .map_err(|error| crate::cli::chain(&error))
}

async fn must_get(cluster: &Cluster, id: &ObjectId) -> Result<Value, String> {
    get(cluster, id)
        .await?
        .ok_or_else(|| format!("{id} does not exist"))
}

async fn installed(book: &mut Book, cluster: &Cluster, namespace: &str, args: &Args) {
    let mut missing = Vec::new();
    for crd in heddle_k8s::crds() {
        let name = crd.metadata.name.unwrap_or_default();
        if !cluster.has_crd(&name).await {
            missing.push(name);
        }
    }
    let found = if missing.is_empty() {
        Ok(Finding::Ok)
    } else {
        Err(format!(
            "missing: {}\nhint: heddle install --crds | kubectl apply -f -",
            missing.join(", ")
        ))
    };
    book.note("linkerd-crd", "custom resource definitions exist", found);

    let config = must_get(
        cluster,
        &ObjectId::new("", "ConfigMap", namespace, heddle_inject::CONFIG_MAP),
    )
    .await;
    let config = config.and_then(|config| {
        let text =
            object::text_at(&config, &["data", heddle_inject::CONFIG_KEY]).ok_or("it has no `values`")?;
        heddle_inject::ProxyDefaults::from_yaml(text).map_err(|error| crate::cli::chain(&error))
    });
    let cni = config.as_ref().is_ok_and(|config| config.cni.enabled);
    book.note(
        "linkerd-config",
        "ConfigMap linkerd-config exists and is understood",
        config.map(|_| Finding::Ok),
    );
    if cni || args.linkerd_cni_enabled {
        cni_plugin(book, cluster, &args.cni_namespace).await;
    }

    identity_checks(book, cluster, namespace).await;

    for (webhook, kind, name) in WEBHOOKS {
        let id = ObjectId::new("admissionregistration.k8s.io", kind, "", name);
        let found = must_get(cluster, &id)
            .await
            .and_then(|hook| match readiness::of(&id, &hook) {
                Readiness::Ready => Ok(Finding::Ok),
                Readiness::Waiting(text) => Err(text),
            });
        book.note(
            "linkerd-webhooks-and-apisvc-tls",
            format!("{webhook} webhook has a caBundle"),
            found,
        );
    }

    for name in COMPONENTS {
        let id = ObjectId::new("apps", "Deployment", namespace, name);
        let found = must_get(cluster, &id)
            .await
            .and_then(|live| match readiness::of(&id, &live) {
                Readiness::Ready => Ok(Finding::Ok),
                Readiness::Waiting(text) => Err(text),
            });
        book.note("linkerd-existence", format!("{name} is available"), found);
    }
    for name in COMPONENTS {
        let found = must_get(cluster, &ObjectId::new("apps", "Deployment", namespace, name))
            .await
            .map(|live| {
                let images = live
                    .pointer("/spec/template/spec/containers")
                    .and_then(Value::as_array);
                let tags: Vec<_> = images
                    .into_iter()
                    .flatten()
                    .filter_map(|container| container.get("image")?.as_str()?.rsplit_once(':'))
                    .map(|(_, tag)| tag)
                    .collect();
                match tags.iter().find(|tag| **tag != heddle_mesh::VERSION) {
                    None => Finding::Ok,
                    Some(tag) => {
                        Finding::Warning(format!("it runs {tag}, this program is {}", heddle_mesh::VERSION))
                    }
                }
            });
        book.note(
            "control-plane-version",
            format!("{name} is of this program's version"),
            found,
        );
    }
}

/// Pods do not start, or start unmeshed, on nodes without the plugin.
async fn cni_plugin(book: &mut Book, cluster: &Cluster, namespace: &str) {
    const CATEGORY: &str = "linkerd-cni-plugin";
    let id = |group: &str, kind: &str, name: &str| ObjectId::new(group, kind, namespace, name);
    let config = must_get(cluster, &id("", "ConfigMap", "linkerd-cni-config")).await;
    book.note(
        CATEGORY,
        "cni plugin ConfigMap exists",
        config.map(|_| Finding::Ok),
    );
    let id = id("apps", "DaemonSet", "linkerd-cni");
    let found = must_get(cluster, &id)
        .await
        .and_then(|live| match readiness::of(&id, &live) {
            Readiness::Ready => Ok(Finding::Ok),
            Readiness::Waiting(text) => Err(text),
        });
    book.note(CATEGORY, "cni plugin pod is running on all nodes", found);
}

async fn identity_checks(book: &mut Book, cluster: &Cluster, namespace: &str) {
    const CATEGORY: &str = "linkerd-identity";
    let now = time::OffsetDateTime::now_utc();
    let roots = must_get(
        cluster,
        &ObjectId::new("", "ConfigMap", namespace, identity::TRUST_ROOTS),
    )
    .await;
    let anchors = roots.and_then(|roots| {
        let pem =
            object::text_at(&roots, &["data", identity::TRUST_ROOTS_KEY]).ok_or("it has no ca-bundle.crt")?;
        certificates::parse(pem)
    });
    let found = anchors
        .as_ref()
        .map_err(Clone::clone)
        .and_then(|anchors| certificates::judge(anchors, now));
    book.note(
        CATEGORY,
        "trust anchors are valid and will be for 60 days",
        found.map(|warning| warning.map_or(Finding::Ok, Finding::Warning)),
    );
    let secret = must_get(
        cluster,
        &ObjectId::new("", "Secret", namespace, identity::ISSUER_SECRET),
    )
    .await;
    let issuer = secret.and_then(|secret| {
        let chain = ["tls.crt", "crt.pem"]
            .iter()
            .find_map(|key| certificates::secret_text(&secret, key));
        certificates::parse(&chain.ok_or("it has neither tls.crt nor crt.pem")?)
    });
    // An issuer that cert-manager renews every day is never valid for 60.
    let found = issuer
        .as_ref()
        .map_err(Clone::clone)
        .and_then(|issuer| certificates::judge(issuer, now).map(|_| Finding::Ok));
    book.note(CATEGORY, "issuer is within its validity", found);
    let found = match (&anchors, &issuer) {
        (Ok(anchors), Ok(issuer)) => certificates::signed_by(issuer, anchors).map(|()| Finding::Ok),
        (Err(error), _) | (_, Err(error)) => Err(error.clone()),
    };
    book.note(CATEGORY, "issuer is signed by a trust anchor", found);
}

async fn proxies(book: &mut Book, cluster: &Cluster, global: &Global, namespace: Option<&str>) {
    const CATEGORY: &str = "linkerd-data-plane";
    let config = must_get(
        cluster,
        &ObjectId::new(
            "",
            "ConfigMap",
            &global.linkerd_namespace,
            heddle_inject::CONFIG_MAP,
        ),
    )
    .await;
    let defaults = config.and_then(|config| {
        let text = object::text_at(&config, &["data", heddle_inject::CONFIG_KEY]).unwrap_or_default();
        heddle_inject::ProxyDefaults::from_yaml(text).map_err(|error| crate::cli::chain(&error))
    });
    let fleet = observe::fleet::list(&cluster.client)
        .await
        .map_err(|error| crate::cli::chain(&error));
    let (defaults, fleet) = match (defaults, fleet) {
        (Ok(defaults), Ok(fleet)) => (defaults, fleet),
        (Err(error), _) | (_, Err(error)) => {
            book.note(CATEGORY, "data plane is up to date", Err(error));
            return;
        }
    };
    if let Some(namespace) = namespace {
        let found = if fleet.namespaces.contains_key(namespace) {
            Ok(Finding::Ok)
        } else {
            Err(format!("namespace {namespace} does not exist"))
        };
        if !book.note(CATEGORY, "data plane namespace exists", found) {
            return;
        }
    }
    let (mut current, mut problems) = (0, Vec::new());
    for workload in fleet
        .workloads
        .iter()
        .filter(|workload| namespace.is_none_or(|namespace| workload.id.namespace == namespace))
    {
        match rollout::judge(&defaults, &fleet, workload) {
            Verdict::Current { .. } if !workload.complete => {
                problems.push(format!("{}: not all of its pods are ready", workload.name()))
            }
            Verdict::Current { .. } => current += 1,
            Verdict::Outdated { .. } => problems.push(format!(
                "{}: its pods carry another proxy than they should; restart it",
                workload.name()
            )),
            Verdict::Restarting { .. } => problems.push(format!("{}: is being restarted", workload.name())),
            Verdict::Held(hold) => problems.push(format!("{}: {hold}", workload.name())),
            Verdict::Outside(reason) if reason.is_surprising() => {
                problems.push(plan::Skip::NotInjected(reason).to_string())
            }
            Verdict::Outside(_) => {}
        }
    }
    let found = if problems.is_empty() {
        Ok(Finding::Ok)
    } else {
        Err(problems.join("\n"))
    };
    book.note(
        CATEGORY,
        format!("data plane proxies are up to date and ready ({current} workloads)"),
        found,
    );
}
