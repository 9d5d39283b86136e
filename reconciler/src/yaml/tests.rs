use expect_test::expect;
use serde_json::json;

use super::*;

fn key(name: &str) -> Step {
    Step::Key(name.to_owned())
}

#[test]
fn documents_know_their_lines() {
    let text = "# head\n---\na: 1\n---\n# only a comment\n---\nb: |\n  x\n---\n";
    let lines: Vec<_> = parse_documents(text)
        .unwrap()
        .into_iter()
        .map(|d| (d.line, d.value))
        .collect();
    assert_eq!(lines, vec![(2, json!({"a": 1})), (6, json!({"b": "x\n"}))]);
}

#[test]
fn errors_name_the_line_in_the_stream() {
    let error = parse_documents("a: 1\n---\nb: [1,\nc: 2\n").unwrap_err();
    assert_eq!(error.place.map(|p| p.line), Some(5), "{error:?}");
    let error = parse_documents("a: 1\na: 2\n").unwrap_err();
    assert!(error.message.contains("duplicate"), "{error:?}");
    let error = parse_documents("x: 0\n---\na:\n  b: .nan\n").unwrap_err();
    expect!["a.b: `.nan` is no number in JSON"].assert_eq(&error.message);
    assert_eq!(error.place, Some(Place { line: 4, column: 6 }));
}

#[test]
fn tags_merge_keys_and_odd_keys_are_refused() {
    for bad in [
        "a: !secret x",
        "a: &x {b: 1}\nc: {<<: *x}",
        "? [1]\n: 2",
        "a: 1\n...\nb: 2",
    ] {
        assert!(parse_documents(bad).is_err(), "{bad:?} was taken");
    }
}

#[test]
fn fields_are_found_in_block_and_flow_style() {
    let text = "spec:\n  values:\n    proxy: {cpu: 1, memory: {limit: 2}}\n  list:\n    - a: x\n    - b:\n        c: 3\n";
    let at = |path: &[Step], target| locate(text, path, target).map(|place| place.to_string());
    let memory = [
        key("spec"),
        key("values"),
        key("proxy"),
        key("memory"),
        key("limit"),
    ];
    assert_eq!(at(&memory, Target::Key).as_deref(), Some("3:30"));
    assert_eq!(at(&memory, Target::Value).as_deref(), Some("3:37"));
    let item = [key("spec"), key("list"), Step::Index(1), key("b"), key("c")];
    assert_eq!(at(&item, Target::Key).as_deref(), Some("7:9"));
    assert_eq!(at(&[key("spec"), key("nope")], Target::Key), None);
    assert_eq!(
        at(&[key("spec"), key("values"), key("proxy")], Target::Value).as_deref(),
        Some("3:12")
    );
}

#[test]
fn printing_is_read_back_unchanged() {
    let value = json!({
        "kind": "K", "apiVersion": "v1", "metadata": {"name": "n", "annotations": {"a.b/c": "on", "x": "0123", "e": ""}},
        "pem": "-----BEGIN\nabc\n-----END\n", "keep": "a\n\n", "chomp": "a\nb", "odd": " a\nb", "tab": "a\tb", "colon": "a: b",
        "numbers": [1, -2, 1.5, "1.5", "1e3", "0x1f", "12:30"], "nested": [[1, [2]], {"a": []}, {"b": {}, "c": [{"d": null}]}],
        "hash": "a #b", "star": "*", "yes": "yes", "empty": {}, "uni": "ß\u{85}", "nl": "\n", "ends": "a:", "flow": "a, b",
    });
    let text = print(&value);
    assert!(
        text.starts_with("apiVersion: v1\nkind: K\nmetadata:\n  name: \"n\"\n"),
        "{text}"
    );
    assert_eq!(parse_single(&text).unwrap().value, value, "{text}");
    assert!(text.contains("\"yes\": \"yes\""), "{text}");
}
