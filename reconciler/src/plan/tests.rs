use expect_test::{Expect, expect};
use serde_json::json;

use super::*;
use crate::{
    object::Origin,
    observe::{Former, Seen},
    profile::Rollout,
    rollout::{NamespaceSeen, Workload},
};

fn mk_object(group: &str, kind: &str, namespace: &str, name: &str) -> Object {
    let api_version = if group.is_empty() {
        "v1".to_owned()
    } else {
        format!("{group}/v1")
    };
    let id = ObjectId::new(group, kind, namespace, name);
    let body = json!({
        "apiVersion": api_version, "kind": kind,
        "metadata": {"name": name, "namespace": namespace, "labels": {label::PROFILE: "production"}},
        "data": {"a": "new"},
    });
    let origin = Origin {
        file: "policies/x.yaml".into(),
        line: 3,
        rendered: false,
    };
    Object {
        stage: Stage::of(&id),
        id,
        api_version,
        body,
        origin,
        partial: false,
        requires_crd: None,
    }
}

fn mk_rendered(objects: Vec<Object>) -> Rendered {
    Rendered {
        profile: "production".into(),
        objects,
        injection: Vec::new(),
        rollout: Rollout::default(),
        values: json!({}),
        notes: Vec::new(),
    }
}

fn server() -> Object {
    mk_object("policy.linkerd.io", "Server", "payments", "web")
}

fn live(object: &Object, value: &str) -> Value {
    let mut live = object.body.clone();
    live["data"]["a"] = value.into();
    live["metadata"]["uid"] = "u1".into();
    live["metadata"]["resourceVersion"] = value.into();
    live["metadata"]["managedFields"] = json!([{"manager": "heddle"}]);
    live
}

fn plan_of(object: Object, seen: Seen) -> Plan {
    let observed = Observed {
        desired: BTreeMap::from([(object.id.clone(), seen)]),
        ..Observed::default()
    };
    plan(&mk_rendered(vec![object]), &observed, true)
}

fn check(plan: &Plan, expected: Expect) {
    let mut text: Vec<_> = plan.steps.iter().map(crate::diff::line).collect();
    text.extend(plan.refusals.iter().map(|fault| format!("x {fault}")));
    expected.assert_eq(&text.join("\n"));
}

#[test]
fn absent_objects_are_created_and_equal_ones_kept() {
    let would = Trial::Would(live(&server(), "new"));
    check(
        &plan_of(
            server(),
            Seen {
                live: None,
                trial: would.clone(),
            },
        ),
        expect!["+ create Server.policy.linkerd.io payments/web"],
    );
    let plan = plan_of(
        server(),
        Seen {
            live: Some(live(&server(), "new")),
            trial: would,
        },
    );
    check(&plan, expect!["= keep Server.policy.linkerd.io payments/web"]);
    assert_eq!(plan.changes().count(), 0);
}

#[test]
fn what_the_server_keeps_for_itself_is_no_difference() {
    let mut would = live(&server(), "new");
    would["metadata"]["resourceVersion"] = "77".into();
    would["metadata"]["generation"] = 5.into();
    would["status"] = json!({"x": 1});
    check(
        &plan_of(
            server(),
            Seen {
                live: Some(live(&server(), "new")),
                trial: Trial::Would(would),
            },
        ),
        expect!["= keep Server.policy.linkerd.io payments/web"],
    );
}

#[test]
fn foreign_fields_are_reported_and_hands_are_reverted() {
    let conflict = |by_hand| {
        vec![Conflict {
            manager: "rival".into(),
            field: ".data.a".into(),
            by_hand,
        }]
    };
    let seen = Seen {
        live: Some(live(&server(), "old")),
        trial: Trial::Conflict(conflict(false)),
    };
    let plan = plan_of(server(), seen);
    check(
        &plan,
        expect![". skip Server.policy.linkerd.io payments/web: other managers own .data.a (rival)"],
    );
    assert_eq!(plan.changes().count(), 0);
    let trial = Trial::Edited {
        would: live(&server(), "new"),
        by: conflict(true),
        resource_version: "old".into(),
    };
    check(
        &plan_of(
            server(),
            Seen {
                live: Some(live(&server(), "old")),
                trial,
            },
        ),
        expect!["~ revert Server.policy.linkerd.io payments/web: changed by hand .data.a (rival)"],
    );
}

#[test]
fn refusals_block_and_name_file_object_and_field() {
    let rejection = Rejection {
        message: "spec.port: Required value".into(),
        field: Some("spec.port".into()),
    };
    let plan = plan_of(
        server(),
        Seen {
            live: None,
            trial: Trial::Rejected(rejection),
        },
    );
    check(
        &plan,
        expect![
            "x policies/x.yaml:3:1: Server.policy.linkerd.io payments/web: spec.port: the API server refuses it: spec.port: Required value"
        ],
    );
    let plan = plan_of(
        server(),
        Seen {
            live: None,
            trial: Trial::NoKind { promised: false },
        },
    );
    check(
        &plan,
        expect![
            "x policies/x.yaml:3:1: Server.policy.linkerd.io payments/web: kind: the API server refuses it: the cluster has no kind Server in policy.linkerd.io/v1 (hint: install its CRD, or check apiVersion and kind)"
        ],
    );
    let plan = plan_of(
        server(),
        Seen {
            live: None,
            trial: Trial::NoNamespace { promised: false },
        },
    );
    check(
        &plan,
        expect![
            "x policies/x.yaml:3:1: Server.policy.linkerd.io payments/web: metadata.namespace: the API server refuses it: the namespace `payments` does not exist (hint: create it, or write it into the profile's injection section)"
        ],
    );
}

#[test]
fn a_commit_may_bring_namespace_and_crd_for_its_own_objects() {
    check(
        &plan_of(
            server(),
            Seen {
                live: None,
                trial: Trial::NoKind { promised: true },
            },
        ),
        expect!["+ create Server.policy.linkerd.io payments/web"],
    );
    check(
        &plan_of(
            server(),
            Seen {
                live: None,
                trial: Trial::NoNamespace { promised: true },
            },
        ),
        expect!["+ create Server.policy.linkerd.io payments/web"],
    );
}

#[test]
fn immutable_fields_recreate_only_what_is_ours() {
    let rejection = || Rejection {
        message: "field is immutable".into(),
        field: Some("spec.selector".into()),
    };
    let seen = |live| Seen {
        live: Some(live),
        trial: Trial::Immutable(rejection()),
    };
    check(
        &plan_of(server(), seen(live(&server(), "old"))),
        expect!["! recreate Server.policy.linkerd.io payments/web: spec.selector cannot be changed in place"],
    );
    let mut foreign = live(&server(), "old");
    foreign["metadata"]["labels"] = json!({});
    check(
        &plan_of(server(), seen(foreign)),
        expect![
            "x policies/x.yaml:3:1: Server.policy.linkerd.io payments/web: spec.selector: the API server refuses it: field is immutable"
        ],
    );
}

#[test]
fn an_opted_out_object_is_left_alone() {
    let mut opted = live(&server(), "old");
    opted["metadata"]["annotations"] = json!({"heddle.dev/reconcile": "disabled"});
    check(
        &plan_of(
            server(),
            Seen {
                live: Some(opted),
                trial: Trial::Would(live(&server(), "new")),
            },
        ),
        expect![". skip Server.policy.linkerd.io payments/web: it carries heddle.dev/reconcile: disabled"],
    );
}

fn plan_former(id: ObjectId, former: Former, prune: bool) -> Plan {
    let observed = Observed {
        former: BTreeMap::from([(id, former)]),
        ..Observed::default()
    };
    plan(&mk_rendered(Vec::new()), &observed, prune)
}

#[test]
fn what_left_git_is_pruned_and_what_is_not_ours_is_let_go() {
    let former = |live: Value| Former {
        live: Some(live),
        released: None,
    };
    check(
        &plan_former(server().id, former(live(&server(), "x")), true),
        expect!["- prune Server.policy.linkerd.io payments/web"],
    );
    check(
        &plan_former(server().id, former(live(&server(), "x")), false),
        expect![". skip Server.policy.linkerd.io payments/web: pruning is disabled for it"],
    );
    check(
        &plan_former(
            server().id,
            Former {
                live: None,
                released: None,
            },
            true,
        ),
        expect![""],
    );
    let mut kept = live(&server(), "x");
    kept["metadata"]["annotations"] = json!({"heddle.dev/prune": "disabled"});
    check(
        &plan_former(server().id, former(kept), true),
        expect![". skip Server.policy.linkerd.io payments/web: pruning is disabled for it"],
    );
    let mut taken_over = live(&server(), "x");
    taken_over["metadata"]["labels"] = json!({label::PROFILE: "other"});
    check(&plan_former(server().id, former(taken_over), true), expect![""]);
    let namespace = mk_object("", "Namespace", "", "payments");
    let mut released = live(&namespace, "x");
    released["data"] = json!({});
    let former = Former {
        live: Some(live(&namespace, "x")),
        released: Some(released),
    };
    check(
        &plan_former(namespace.id.clone(), former, true),
        expect!["~ release Namespace payments: its fields are let go, the object stays"],
    );
}

#[test]
fn a_plan_restarts_what_its_own_annotations_change() {
    let mut config = mk_object("", "ConfigMap", "linkerd", "linkerd-config");
    config.body["data"] = json!({"values": "{}"});
    let mut namespace = mk_object("", "Namespace", "", "payments");
    namespace.partial = true;
    let with = |mode: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "payments", "annotations": {"linkerd.io/inject": mode}}});
    let template = json!({"spec": {"containers": [{"name": "app", "image": "app"}]}});
    let workload = Workload {
        id: ObjectId::new("apps", "Deployment", "payments", "web"),
        template: serde_json::from_value(template).unwrap(),
        complete: true,
        paused: false,
        on_delete: false,
        pods: vec![None],
    };
    let namespaces = BTreeMap::from([("payments".to_owned(), NamespaceSeen::default())]);
    let fleet = Fleet {
        namespaces,
        workloads: vec![workload],
    };
    let desired = |trial| {
        BTreeMap::from([(
            namespace.id.clone(),
            Seen {
                live: Some(with("disabled")),
                trial,
            },
        )])
    };
    let rendered = mk_rendered(vec![config, namespace.clone()]);
    let observed = Observed {
        desired: desired(Trial::Would(with("enabled"))),
        fleet: Some(fleet.clone()),
        ..Observed::default()
    };
    check(
        &plan(&rendered, &observed, true),
        expect![[r#"
            ~ patch Namespace payments
            * restart Deployment payments/web: its pods carry another proxy than Git asks for"#]],
    );
    let observed = Observed {
        desired: desired(Trial::Would(with("disabled"))),
        fleet: Some(fleet),
        ..Observed::default()
    };
    check(
        &plan(&rendered, &observed, true),
        expect!["= keep Namespace payments"],
    );
}
