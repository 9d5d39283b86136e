use serde_json::json;

use super::*;

fn mk_workload(name: &str, pods: &[Option<&str>]) -> Workload {
    Workload {
        id: ObjectId::new("apps", "Deployment", "payments", name),
        template: serde_json::from_value(json!({
            "metadata": {"annotations": {}},
            "spec": {"containers": [{"name": "app", "image": "app", "ports": [{"containerPort": 8080}]}]},
        }))
        .unwrap(),
        complete: true,
        paused: false,
        on_delete: false,
        pods: pods.iter().map(|stamp| stamp.map(str::to_owned)).collect(),
    }
}

fn annotate(mut workload: Workload, key: &str, value: &str) -> Workload {
    let meta = workload.template.metadata.get_or_insert_default();
    meta.annotations
        .get_or_insert_default()
        .insert(key.into(), value.into());
    workload
}

fn mk_fleet(inject: &str) -> Fleet {
    let annotations = BTreeMap::from([("linkerd.io/inject".to_owned(), inject.to_owned())]);
    let namespaces = BTreeMap::from([(
        "payments".to_owned(),
        NamespaceSeen {
            annotations,
            labels: BTreeMap::new(),
        },
    )]);
    Fleet {
        namespaces,
        workloads: Vec::new(),
    }
}

fn defaults() -> ProxyDefaults {
    ProxyDefaults::from_yaml("{}").unwrap()
}

fn stamp() -> String {
    let fleet = mk_fleet("enabled");
    wanted(
        &defaults(),
        "payments",
        &fleet.namespaces["payments"],
        &mk_workload("web", &[]),
    )
    .unwrap()
}

#[test]
fn unmeshed_pods_of_an_annotated_namespace_are_restarted() {
    let verdict = judge(&defaults(), &mk_fleet("enabled"), &mk_workload("web", &[None]));
    assert_eq!(
        verdict,
        Verdict::Outdated {
            to: stamp(),
            attempt: 1
        }
    );
}

#[test]
fn pods_with_the_expected_stamp_are_left_alone() {
    let workload = mk_workload("web", &[Some(&stamp()), Some(&stamp())]);
    assert_eq!(
        judge(&defaults(), &mk_fleet("enabled"), &workload),
        Verdict::Current { meshed: true }
    );
    assert_eq!(
        judge(&defaults(), &mk_fleet("enabled"), &mk_workload("web", &[])),
        Verdict::Current { meshed: true }
    );
}

#[test]
fn pods_lose_the_proxy_that_nobody_asks_for_any_more() {
    let verdict = judge(
        &defaults(),
        &mk_fleet("disabled"),
        &mk_workload("web", &[Some("old")]),
    );
    assert_eq!(
        verdict,
        Verdict::Outdated {
            to: NO_PROXY.into(),
            attempt: 1
        }
    );
    let verdict = judge(&defaults(), &mk_fleet("disabled"), &mk_workload("web", &[None]));
    assert_eq!(verdict, Verdict::Outside(SkipReason::DisabledByNamespace));
}

#[test]
fn a_changed_setting_restarts_and_an_unrelated_annotation_does_not() {
    let mut fleet = mk_fleet("enabled");
    let workload = mk_workload("web", &[Some(&stamp())]);
    let annotations = &mut fleet.namespaces.get_mut("payments").unwrap().annotations;
    annotations.insert("team".into(), "red".into());
    assert_eq!(
        judge(&defaults(), &fleet, &workload),
        Verdict::Current { meshed: true }
    );
    let annotations = &mut fleet.namespaces.get_mut("payments").unwrap().annotations;
    annotations.insert("config.linkerd.io/proxy-memory-limit".into(), "250Mi".into());
    assert!(matches!(
        judge(&defaults(), &fleet, &workload),
        Verdict::Outdated { .. }
    ));
}

#[test]
fn a_restart_is_made_once_and_tried_again_a_bounded_number_of_times() {
    let fleet = mk_fleet("enabled");
    let under_way = Workload {
        complete: false,
        ..annotate(mk_workload("web", &[None]), RESTARTED_FOR, &stamp())
    };
    assert_eq!(
        judge(&defaults(), &fleet, &under_way),
        Verdict::Restarting { to: stamp() }
    );
    let came_back_bare = annotate(mk_workload("web", &[None]), RESTARTED_FOR, &stamp());
    assert_eq!(
        judge(&defaults(), &fleet, &came_back_bare),
        Verdict::Outdated {
            to: stamp(),
            attempt: 2
        }
    );
    let often = annotate(
        mk_workload("web", &[None]),
        RESTARTED_FOR,
        &restart_value(&stamp(), ATTEMPTS_MAX),
    );
    assert_eq!(
        judge(&defaults(), &fleet, &often),
        Verdict::Held(Hold::Attempts(ATTEMPTS_MAX))
    );
}

#[test]
fn the_restart_annotation_does_not_change_the_stamp() {
    let fleet = mk_fleet("enabled");
    let restarted = annotate(mk_workload("web", &[Some(&stamp())]), RESTARTED_FOR, &stamp());
    assert_eq!(
        judge(&defaults(), &fleet, &restarted),
        Verdict::Current { meshed: true }
    );
}

#[test]
fn host_network_paused_and_on_delete_workloads_are_not_restarted() {
    let fleet = mk_fleet("enabled");
    let mut host = mk_workload("web", &[None]);
    host.template.spec.get_or_insert_default().host_network = Some(true);
    assert_eq!(
        judge(&defaults(), &fleet, &host),
        Verdict::Outside(SkipReason::HostNetwork)
    );
    let paused = Workload {
        paused: true,
        ..mk_workload("web", &[None])
    };
    assert_eq!(judge(&defaults(), &fleet, &paused), Verdict::Held(Hold::Paused));
    let on_delete = Workload {
        on_delete: true,
        ..mk_workload("web", &[None])
    };
    assert_eq!(
        judge(&defaults(), &fleet, &on_delete),
        Verdict::Held(Hold::OnDelete)
    );
}

#[test]
fn waves_grow_and_wait_for_each_other() {
    let workloads: Vec<_> = (0..40)
        .map(|i| mk_workload(&format!("w{i:02}"), &[None]))
        .collect();
    let all: Vec<_> = workloads.iter().collect();
    let rollout = Rollout::default();
    let mut progress = Progress::default();
    assert_eq!(next_wave(&rollout, &mut progress, &all, 0).len(), 1, "the canary");
    assert_eq!(
        next_wave(&rollout, &mut progress, &all[1..], 1).len(),
        0,
        "the canary is still rolling"
    );
    assert_eq!(
        next_wave(&rollout, &mut progress, &all[1..], 0).len(),
        3,
        "10 % of 40 less the canary"
    );
    assert_eq!(next_wave(&rollout, &mut progress, &all[4..], 0).len(), 16);
    assert_eq!(next_wave(&rollout, &mut progress, &all[20..], 0).len(), 20);
    assert_eq!(next_wave(&rollout, &mut progress, &[], 0).len(), 0);
    assert_eq!(
        progress,
        Progress::default(),
        "the next rollout begins with a canary again"
    );
    let capped = Rollout {
        waves: vec![Wave::Percent(100)],
        max_concurrent: Some(5),
        ..Rollout::default()
    };
    assert_eq!(next_wave(&capped, &mut progress, &all[2..], 2).len(), 3);
}
