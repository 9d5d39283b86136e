//! Label selectors: their type in our CRDs, and whether they match an object's labels.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Selects objects by their labels. Both parts must match; an empty selector matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    /// Labels that an object must have, with exactly these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub match_labels: BTreeMap<String, String>,
    /// Conditions on an object's labels, all of which must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub match_expressions: Vec<Requirement>,
}

/// One condition on an object's labels. Values that do not go with the operator are Linkerd's to admit; the webhook warns
/// of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Requirement {
    /// The label's key.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// How the label's value relates to `values`.
    pub operator: Operator,
    /// The values of the operators In and NotIn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 63)))]
    pub values: Vec<String>,
}

/// How a label's value relates to a requirement's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Operator {
    /// The label is there, with one of the values.
    In,
    /// The label is absent, or has none of the values.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

impl LabelSelector {
    /// Whether an object with these labels is selected.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let Self {
            match_labels,
            match_expressions,
        } = self;
        match_labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
            && match_expressions
                .iter()
                .all(|requirement| requirement.matches(labels))
    }

    /// Like [`LabelSelector::matches`], for an object's optional labels: none at all count as an empty map.
    pub fn matches_object<K: kube::Resource>(&self, object: &K) -> bool {
        match object.meta().labels.as_ref() {
            Some(labels) => self.matches(labels),
            None => self.matches(&BTreeMap::new()),
        }
    }

    /// Whether everything is selected.
    pub fn selects_all(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }
}

impl Requirement {
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            Operator::In => value.is_some_and(|value| self.values.contains(value)),
            Operator::NotIn => value.is_none_or(|value| !self.values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn selector(json: serde_json::Value) -> LabelSelector {
        serde_json::from_value(json).expect("a selector")
    }

    #[test]
    fn empty_selector_matches_everything() {
        assert!(LabelSelector::default().matches(&labels(&[])));
        assert!(LabelSelector::default().matches(&labels(&[("app", "web")])));
        assert!(LabelSelector::default().selects_all());
    }

    #[test]
    fn both_parts_must_match() {
        let selector = selector(serde_json::json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [{"key": "tier", "operator": "In", "values": ["a", "b"]}],
        }));
        assert!(selector.matches(&labels(&[("app", "web"), ("tier", "b")])));
        assert!(!selector.matches(&labels(&[("app", "web"), ("tier", "c")])));
        assert!(!selector.matches(&labels(&[("app", "web")])));
        assert!(!selector.matches(&labels(&[("tier", "a")])));
    }

    #[test]
    fn each_operator_with_and_without_the_label() {
        for (operator, values, present, absent) in [
            ("In", vec!["x"], true, false),
            ("In", vec!["y"], false, false),
            ("NotIn", vec!["x"], false, true),
            ("NotIn", vec!["y"], true, true),
            ("Exists", vec![], true, false),
            ("DoesNotExist", vec![], false, true),
        ] {
            let selector = selector(
                serde_json::json!({"matchExpressions": [{"key": "k", "operator": operator, "values": values}]}),
            );
            assert_eq!(
                selector.matches(&labels(&[("k", "x")])),
                present,
                "{operator} {values:?}, label there"
            );
            assert_eq!(
                selector.matches(&labels(&[])),
                absent,
                "{operator} {values:?}, label absent"
            );
        }
    }
}
