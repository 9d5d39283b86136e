use expect_test::expect;

use super::*;
use crate::object::{ObjectId, Stage};

fn mk_step(kind: &str, before: Option<Value>, after: Option<Value>, action: Action) -> Step {
    Step {
        id: ObjectId::new("", kind, "linkerd", "x"),
        stage: Stage::Control,
        action,
        before,
        after,
        origin: None,
    }
}

fn mk_plan(steps: Vec<Step>) -> Plan {
    Plan {
        steps,
        refusals: Vec::new(),
    }
}

fn patch(kind: &str, before: Value, after: Value) -> Step {
    mk_step(kind, Some(before), Some(after), Action::Patch)
}

#[test]
fn text_shows_a_unified_diff() {
    let plan = mk_plan(vec![patch(
        "ConfigMap",
        json!({"data": {"a": "1", "b": "2"}}),
        json!({"data": {"a": "1", "b": "3"}}),
    )]);
    expect![[r#"
        ~ patch ConfigMap linkerd/x
            --- live/ConfigMap/linkerd/x
            +++ git/ConfigMap/linkerd/x
            @@ -1,3 +1,3 @@
             data:
               a: "1"
            -  b: "2"
            +  b: "3"
        1 to patch
    "#]]
    .assert_eq(&text(&plan, false));
}

#[test]
fn nothing_to_do_prints_nothing() {
    assert_eq!(
        text(
            &mk_plan(vec![mk_step("ConfigMap", None, None, Action::Keep)]),
            false
        ),
        ""
    );
}

#[test]
fn secrets_never_show() {
    let plan = mk_plan(vec![patch(
        "Secret",
        json!({"data": {"same": "c2VjcmV0", "new": "b2xk"}}),
        json!({"data": {"same": "c2VjcmV0", "new": "bmV3"}}),
    )]);
    for shown in [text(&plan, false), markdown(&plan, "x"), json(&plan).to_string()] {
        for secret in ["c2VjcmV0", "b2xk", "bmV3"] {
            assert!(!shown.contains(secret), "{shown}");
        }
        assert!(shown.contains("changed"), "{shown}");
    }
}

#[test]
fn markdown_cannot_be_broken_out_of_and_stays_short() {
    let big: String = (0..2000).map(|i| format!("line {i} ``` ~~~\n")).collect();
    let steps = (0..100)
        .map(|_| {
            patch(
                "ConfigMap",
                json!({"data": {}}),
                json!({"data": {"a": big.clone()}}),
            )
        })
        .collect();
    let text = markdown(&mk_plan(steps), "main@sha1:abc");
    assert!(text.len() < 65_536, "{}", text.len());
    assert!(text.contains("too long for a comment"));
}

#[test]
fn json_is_for_programs() {
    let plan = mk_plan(vec![mk_step(
        "Deployment",
        None,
        None,
        Action::Restart {
            to: "abc".into(),
            attempt: 1,
        },
    )]);
    expect![[r#"{"refusals":[],"steps":[{"action":"restart","after":null,"before":null,"group":"","kind":"Deployment","name":"x","namespace":"linkerd","restart":{"attempt":1,"stamp":"abc"},"stage":"control"}],"summary":{"restart":1}}"#]]
        .assert_eq(&json(&plan).to_string());
}
