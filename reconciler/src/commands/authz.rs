//! `heddle authz KIND/NAME`: the Servers, routes and authorizations that cover a workload.

use std::collections::BTreeMap;

use heddle_k8s::policy::{
    AuthorizationPolicy, HttpRoute as PolicyRoute, Server, ServerAuthorization, authorization_policy::Target,
    server::ServerTarget,
};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::{
    connect,
    resource::{self, table},
};
use crate::{
    cli::{Failure, Global, Outcome},
    yaml,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// KIND/NAME of a workload or pod, such as deploy/web
    resource: String,
    /// The workload's namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// The form of the output
    #[arg(short, long, value_enum, default_value = "table")]
    output: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    Table,
    Json,
    Yaml,
}

/// One thing that authorizes, on what.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    server: String,
    /// `*` stands for all of the Server's requests.
    route: String,
    policy: String,
    server_authorization: String,
}

/// Objects of the namespace, as far as they decide.
#[derive(Default)]
struct Objects {
    servers: Vec<Server>,
    policies: Vec<AuthorizationPolicy>,
    authorizations: Vec<ServerAuthorization>,
    routes: Vec<Route>,
}

/// A route of any group, reduced to what attaches it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Route {
    kind: Kind,
    name: String,
    servers: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Policy,
    Gateway,
    Grpc,
}

pub fn run(global: &Global, args: Args) -> Outcome {
    super::block_on(async {
        let cluster = connect(global).await?;
        let namespace = &args.namespace;
        let pods = resource::pods(&cluster, namespace, &args.resource).await?;
        if pods.is_empty() {
            return Err(Failure::message(format!(
                "{} has no pods in namespace {namespace}",
                args.resource
            )));
        }
        let mut routes: Vec<Route> = resource::list::<PolicyRoute>(&cluster, namespace)
            .await?
            .iter()
            .map(|route| Route {
                kind: Kind::Policy,
                name: route.name_any(),
                servers: parents(
                    route.spec.parent_refs.iter().map(|parent| {
                        (
                            parent.group.as_str(),
                            parent.kind.as_str(),
                            parent.namespace.as_deref(),
                            &parent.name,
                        )
                    }),
                    namespace,
                ),
            })
            .collect();
        routes.extend(gateway_routes(&cluster, namespace).await?);
        let objects = Objects {
            servers: resource::list(&cluster, namespace).await?,
            policies: resource::list(&cluster, namespace).await?,
            authorizations: resource::list(&cluster, namespace).await?,
            routes,
        };
        let rows = objects.rows(namespace, &pods);
        let text = match args.output {
            Form::Table if rows.is_empty() => {
                crate::cli::say(&format!(
                    "No Server selects {}: the default policy of its proxies decides.",
                    args.resource
                ));
                String::new()
            }
            Form::Table => table(
                &["ROUTE", "SERVER", "AUTHORIZATION_POLICY", "SERVER_AUTHORIZATION"],
                rows.iter().map(|row| {
                    [&row.route, &row.server, &row.policy, &row.server_authorization]
                        .map(Clone::clone)
                        .to_vec()
                }),
            ),
            Form::Json => format!("{:#}\n", json(&rows)),
            Form::Yaml => yaml::print(&json(&rows)),
        };
        crate::cli::print(&text)?;
        Ok(0)
    })
}

async fn gateway_routes(cluster: &crate::cluster::Cluster, namespace: &str) -> Result<Vec<Route>, Failure> {
    use gateway_api::{grpcroutes::GrpcRoute, httproutes::HttpRoute};
    let mut routes = Vec::new();
    for route in resource::list::<HttpRoute>(cluster, namespace).await? {
        let refs = route.spec.parent_refs.iter().flatten().map(|parent| {
            (
                parent.group.as_deref().unwrap_or_default(),
                parent.kind.as_deref().unwrap_or("Gateway"),
                parent.namespace.as_deref(),
                &parent.name,
            )
        });
        routes.push(Route {
            kind: Kind::Gateway,
            servers: parents(refs, namespace),
            name: route.name_any(),
        });
    }
    for route in resource::list::<GrpcRoute>(cluster, namespace).await? {
        let refs = route.spec.parent_refs.iter().flatten().map(|parent| {
            (
                parent.group.as_deref().unwrap_or_default(),
                parent.kind.as_deref().unwrap_or("Gateway"),
                parent.namespace.as_deref(),
                &parent.name,
            )
        });
        routes.push(Route {
            kind: Kind::Grpc,
            servers: parents(refs, namespace),
            name: route.name_any(),
        });
    }
    Ok(routes)
}

/// The Servers among the parents.
fn parents<'a>(
    refs: impl Iterator<Item = (&'a str, &'a str, Option<&'a str>, &'a String)>,
    own: &str,
) -> Vec<String> {
    refs.filter(|(group, kind, namespace, _)| {
        heddle_k8s::reference::targets_kind::<Server>(Some(group), kind)
            && namespace.is_none_or(|namespace| namespace == own)
    })
    .map(|(.., name)| name.clone())
    .collect()
}

impl Objects {
    fn rows(&self, namespace: &str, pods: &[Pod]) -> Vec<Row> {
        let mut rows = Vec::new();
        let none = BTreeMap::new();
        let selects = |server: &Server| match server.spec.selects() {
            Some(ServerTarget::Pods(selector)) => pods
                .iter()
                .any(|pod| selector.matches(pod.metadata.labels.as_ref().unwrap_or(&none))),
            _ => false,
        };
        for server in self.servers.iter().filter(|server| selects(server)) {
            let name = server.name_any();
            let before = rows.len();
            let row = |route: &str, policy: &str, authorization: &str| Row {
                server: name.clone(),
                route: route.to_owned(),
                policy: policy.to_owned(),
                server_authorization: authorization.to_owned(),
            };
            let routes = || self.routes.iter().filter(|route| route.servers.contains(&name));
            for policy in &self.policies {
                let on_route = |kind, target: &str| {
                    routes()
                        .find(|route| route.kind == kind && route.name == target)
                        .map(|route| route.name.clone())
                };
                let route = match policy.spec.target() {
                    Ok(Target::Server(target)) => (target == name).then(|| "*".to_owned()),
                    Ok(Target::Namespace(target)) => (target == namespace).then(|| "*".to_owned()),
                    Ok(Target::PolicyHttpRoute(target)) => on_route(Kind::Policy, target),
                    Ok(Target::GatewayHttpRoute(target)) => on_route(Kind::Gateway, target),
                    Ok(Target::GatewayGrpcRoute(target)) => on_route(Kind::Grpc, target),
                    // It permits nothing.
                    Err(_) => None,
                };
                rows.extend(route.map(|route| row(&route, &policy.name_any(), "")));
            }
            let authorizations = self
                .authorizations
                .iter()
                .filter(|authorization| authorization.spec.server.selects(server));
            rows.extend(authorizations.map(|authorization| row("*", "", &authorization.name_any())));
            if rows.len() == before {
                rows.push(row("*", "", ""));
            }
        }
        rows.sort();
        rows
    }
}

fn json(rows: &[Row]) -> Value {
    let said = |text: &str| if text.is_empty() { Value::Null } else { json!(text) };
    rows.iter()
        .map(|row| {
            json!({
                "route": said(&row.route),
                "server": row.server,
                "authorizationPolicy": said(&row.policy),
                "serverAuthorization": said(&row.server_authorization),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_covers_a_workload() {
        let server = |name: &str, app: &str| {
            parse::<Server>(json!({
                "apiVersion": "policy.linkerd.io/v1beta3", "kind": "Server", "metadata": {"name": name, "namespace": "a"},
                "spec": {"podSelector": {"matchLabels": {"app": app}}, "port": "http"},
            }))
        };
        let policy = |name: &str, group: &str, kind: &str, target: &str| {
            parse::<AuthorizationPolicy>(json!({
                "apiVersion": "policy.linkerd.io/v1alpha1", "kind": "AuthorizationPolicy",
                "metadata": {"name": name, "namespace": "a"},
                "spec": {"targetRef": {"group": group, "kind": kind, "name": target}, "requiredAuthenticationRefs": []},
            }))
        };
        let objects = Objects {
            servers: vec![
                server("web", "web"),
                server("admin", "web"),
                server("other", "other"),
            ],
            policies: vec![
                policy("to-web", "policy.linkerd.io", "Server", "web"),
                policy("to-route", "policy.linkerd.io", "HTTPRoute", "get"),
                policy("to-other-route", "gateway.networking.k8s.io", "HTTPRoute", "get"),
            ],
            authorizations: vec![parse(json!({
                "apiVersion": "policy.linkerd.io/v1beta1", "kind": "ServerAuthorization",
                "metadata": {"name": "old", "namespace": "a"},
                "spec": {"server": {"name": "web"}, "client": {"unauthenticated": true}},
            }))],
            routes: vec![Route {
                kind: Kind::Policy,
                name: "get".into(),
                servers: vec!["web".into()],
            }],
        };
        let pod =
            parse::<Pod>(json!({"metadata": {"name": "web-0", "namespace": "a", "labels": {"app": "web"}}}));
        let rows: Vec<_> = objects
            .rows("a", &[pod])
            .into_iter()
            .map(|row| [row.server, row.route, row.policy, row.server_authorization].join(" "))
            .collect();
        assert_eq!(
            rows,
            ["admin *  ", "web *  old", "web * to-web ", "web get to-route "]
        );
    }
}
