//! A plan as people and programs read it: text for a terminal, Markdown for a pull request, JSON.
//!
//! Pure. Secret values never appear: what changed in them shows as masks that differ.

use std::fmt::Write as _;

use serde_json::{Value, json};
use similar::TextDiff;

use crate::{
    object,
    plan::{Action, Plan, Skip, Step},
    yaml,
};

/// A diff of one object larger than this is cut in Markdown: forges refuse long comments.
const MARKDOWN_DIFF_BYTES_MAX: usize = 8 * 1024;
/// GitHub takes 65,536 characters in a comment.
const MARKDOWN_BYTES_MAX: usize = 60 * 1024;

/// One line about a step: `~ Server payments/web   policies/web.yaml:1`.
pub fn line(step: &Step) -> String {
    let sign = match &step.action {
        Action::Create | Action::MakeIdentity => '+',
        Action::Patch | Action::Revert { .. } | Action::Release => '~',
        Action::Prune { .. } => '-',
        Action::Recreate(_) => '!',
        Action::Restart { .. } => '*',
        Action::Keep => '=',
        Action::Skip(_) => '.',
    };
    let mut line = format!("{sign} {} {}", step.action.verb(), step.id);
    match &step.action {
        Action::Skip(skip) => {
            let _ = write!(line, ": {skip}");
        }
        Action::Recreate(rejection) => {
            let field = rejection.field.as_deref().unwrap_or("a field");
            let _ = write!(line, ": {field} cannot be changed in place");
        }
        Action::Revert { by, .. } => {
            line.push_str(": changed by hand");
            for conflict in by {
                let _ = write!(line, " {} ({})", conflict.field, conflict.manager);
            }
        }
        Action::Restart { to, .. } if to == crate::rollout::NO_PROXY => {
            line.push_str(": its pods are to run without the proxy")
        }
        Action::Restart { .. } => line.push_str(": its pods carry another proxy than Git asks for"),
        Action::Release => line.push_str(": its fields are let go, the object stays"),
        _ => {}
    }
    line
}

/// Whether a step is worth showing: what changes, and what cannot become as Git asks.
fn is_shown(step: &Step) -> bool {
    step.action.is_change() || matches!(&step.action, Action::Skip(Skip::Conflict(_) | Skip::Hold(_)))
}

/// The unified diff of a step's object; empty when there is nothing to compare.
pub fn unified(step: &Step) -> String {
    if !step.action.is_change() || matches!(step.action, Action::Restart { .. } | Action::MakeIdentity) {
        return String::new();
    }
    let (before, after) = masked(step);
    let text = |value: &Option<Value>| value.as_ref().map(yaml::print).unwrap_or_default();
    let (before, after) = (text(&before), text(&after));
    let name = step.id.to_string().replace(' ', "/");
    TextDiff::from_lines(&before, &after)
        .unified_diff()
        .context_radius(3)
        .header(&format!("live/{name}"), &format!("git/{name}"))
        .to_string()
}

/// Before and after, Secrets masked so that equal values have equal masks and others do not.
fn masked(step: &Step) -> (Option<Value>, Option<Value>) {
    let (mut before, mut after) = (step.before.clone(), step.after.clone());
    if step.id.is("", "Secret") {
        for field in ["data", "stringData"] {
            let old = before.as_ref().and_then(|value| value.get(field)).cloned();
            mask(before.as_mut(), field, None);
            mask(after.as_mut(), field, old.as_ref());
        }
    }
    (before, after)
}

fn mask(object: Option<&mut Value>, field: &str, old: Option<&Value>) {
    let Some(map) = object
        .and_then(|object| object.get_mut(field))
        .and_then(Value::as_object_mut)
    else {
        return;
    };
    for (key, value) in map {
        let same = old.is_none_or(|old| old.get(key) == Some(value));
        *value = if same {
            "***".into()
        } else {
            "*** (changed)".into()
        };
    }
}

/// The plan for a terminal. `color` paints added and removed lines.
pub fn text(plan: &Plan, color: bool) -> String {
    let mut out = String::new();
    for step in plan.steps.iter().filter(|step| is_shown(step)) {
        let _ = writeln!(out, "{}", paint(&line(step), color));
        for line in unified(step).lines() {
            let _ = writeln!(out, "    {}", paint(line, color));
        }
    }
    for fault in &plan.refusals {
        let _ = writeln!(out, "x refused {fault}");
    }
    if !out.is_empty() {
        let _ = writeln!(out, "{}", summary(plan));
    }
    out
}

fn paint(line: &str, color: bool) -> String {
    let code = match line.as_bytes().first() {
        _ if !color => return line.to_owned(),
        Some(b'+') => 32,
        Some(b'-') => 31,
        Some(b'~' | b'!' | b'*') => 33,
        Some(b'@') => 36,
        _ => return line.to_owned(),
    };
    format!("\u{1b}[{code}m{line}\u{1b}[0m")
}

/// `2 to create, 1 to patch, 3 to restart`.
pub fn summary(plan: &Plan) -> String {
    let counts = plan.counts();
    let mut parts = Vec::new();
    for (verb, word) in [
        ("create", "to create"),
        ("patch", "to patch"),
        ("revert", "to revert"),
        ("recreate", "to recreate"),
        ("prune", "to prune"),
        ("release", "to release"),
        ("restart", "to restart"),
        ("create runtime identity (once)", "of runtime identity to make"),
    ] {
        if let Some(count) = counts.get(verb) {
            parts.push(format!("{count} {word}"));
        }
    }
    let held = plan
        .steps
        .iter()
        .filter(|step| is_shown(step) && !step.action.is_change())
        .count();
    if held > 0 {
        parts.push(format!("{held} held back"));
    }
    if !plan.refusals.is_empty() {
        parts.push(format!(
            "{} refused: nothing will be applied",
            plan.refusals.len()
        ));
    }
    if parts.is_empty() {
        "nothing to do".to_owned()
    } else {
        parts.join(", ")
    }
}

/// The plan as a pull request's comment.
pub fn markdown(plan: &Plan, title: &str) -> String {
    let mut out = format!("### Heddle plan: {title}\n\n**{}**\n", summary(plan));
    for fault in &plan.refusals {
        let _ = writeln!(out, "\n:x: `{}`", fault.to_string().replace('`', "'"));
    }
    let mut left_out = 0;
    for step in plan.steps.iter().filter(|step| is_shown(step)) {
        let mut diff = unified(step);
        if diff.len() > MARKDOWN_DIFF_BYTES_MAX {
            let end = (0..=MARKDOWN_DIFF_BYTES_MAX)
                .rev()
                .find(|end| diff.is_char_boundary(*end))
                .unwrap_or(0);
            diff.truncate(end);
            diff.push_str("\n… (cut)\n");
        }
        let line = line(step);
        let entry = match diff.is_empty() {
            true => format!("\n- `{}`\n", line.replace('`', "'")),
            // A longer fence than any in the diff cannot be closed by it.
            false => format!(
                "\n<details><summary><code>{}</code></summary>\n\n~~~~~~diff\n{diff}~~~~~~\n\n</details>\n",
                escape(&line)
            ),
        };
        if out.len() + entry.len() > MARKDOWN_BYTES_MAX {
            left_out += 1;
        } else {
            out.push_str(&entry);
        }
    }
    if left_out > 0 {
        let _ = writeln!(out, "\n… and {left_out} more, too long for a comment.");
    }
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// The plan for programs.
pub fn json(plan: &Plan) -> Value {
    let steps: Vec<_> = plan
        .steps
        .iter()
        .filter(|step| is_shown(step))
        .map(|step| {
            let (before, after) = masked(step);
            let mut entry = json!({
                "action": step.action.verb(), "stage": step.stage, "group": step.id.group, "kind": step.id.kind,
                "namespace": step.id.namespace, "name": step.id.name, "before": before, "after": after,
            });
            if let Some(origin) = &step.origin {
                entry["origin"] = json!({"file": origin.file, "line": origin.line, "rendered": origin.rendered});
            }
            match &step.action {
                Action::Skip(Skip::Conflict(conflicts)) => {
                    entry["conflicts"] = json!(conflicts);
                    entry["reason"] = "conflict".into();
                }
                Action::Skip(skip) => entry["reason"] = skip.to_string().into(),
                Action::Restart { to, attempt } => entry["restart"] = json!({"stamp": to, "attempt": attempt}),
                _ => {}
            }
            entry
        })
        .collect();
    let refusals: Vec<_> = plan
        .refusals
        .iter()
        .map(|fault| json!({"file": fault.file, "object": fault.object, "field": fault.field, "message": fault.message}))
        .collect();
    json!({"summary": plan.counts(), "steps": steps, "refusals": refusals})
}

/// The difference between two renders, without a cluster: what a commit changes.
pub fn between(base: &crate::render::Rendered, head: &crate::render::Rendered) -> Plan {
    let mut plan = Plan::default();
    for object in &head.objects {
        let before = base.get(&object.id).map(|object| object.body.clone());
        let action = match &before {
            None => Action::Create,
            Some(before) if *before == object.body => continue,
            Some(_) => Action::Patch,
        };
        let after = Some(object.body.clone());
        plan.steps.push(Step {
            id: object.id.clone(),
            stage: object.stage,
            action,
            before,
            after,
            origin: Some(object.origin.clone()),
        });
    }
    for object in base
        .objects
        .iter()
        .filter(|object| head.get(&object.id).is_none())
    {
        let release = object.partial || observe_released(object);
        let action = if release {
            Action::Release
        } else {
            Action::Prune { uid: String::new() }
        };
        plan.steps.push(Step {
            id: object.id.clone(),
            stage: object.stage,
            action,
            before: Some(object.body.clone()),
            after: None,
            origin: None,
        });
    }
    plan
}

fn observe_released(object: &object::Object) -> bool {
    crate::observe::is_released(&object.id, &object.body)
}

#[cfg(test)]
mod tests;
