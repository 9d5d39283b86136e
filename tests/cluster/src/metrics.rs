//! What a proxy says on `:4191/metrics`, read through the API server's pod proxy.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::kubectl::Kubectl;

/// One series: its name, labels and value.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// The metric's name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

impl Series {
    /// A label's value, empty when the series has no such label.
    pub fn label(&self, key: &str) -> &str {
        self.labels.get(key).map_or("", String::as_str)
    }
}

/// All series of a pod's proxy.
pub fn scrape(kubectl: &Kubectl, namespace: &str, pod: &str) -> Result<Vec<Series>> {
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}:4191/proxy/metrics");
    Ok(parse(&kubectl.run(&["get", "--raw", &path])?))
}

/// The sum of the series called `name` whose labels hold all of `labels`.
pub fn sum(series: &[Series], name: &str, labels: &[(&str, &str)]) -> f64 {
    series
        .iter()
        .filter(|one| one.name == name && labels.iter().all(|(key, value)| one.label(key) == *value))
        .map(|one| one.value)
        .sum()
}

/// Reads the text exposition format.
pub fn parse(text: &str) -> Vec<Series> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(line)
        .collect()
}

fn line(line: &str) -> Option<Series> {
    let (name, labels, rest) = match line.find('{') {
        Some(open) => {
            let (labels, rest) = labels(&line[open + 1..])?;
            (&line[..open], labels, rest)
        }
        None => {
            let (name, rest) = line.split_once(' ')?;
            (name, BTreeMap::new(), rest)
        }
    };
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Series {
        name: name.to_owned(),
        labels,
        value,
    })
}

/// `key="value",…}`, with `\\`, `\"` and `\n` escaped in values; returns what follows the brace.
fn labels(mut text: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        text = text.trim_start_matches([',', ' ']);
        if let Some(rest) = text.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (key, rest) = text.split_once("=\"")?;
        let (mut value, mut escaped, mut end) = (String::new(), false, None);
        for (index, c) in rest.char_indices() {
            match (escaped, c) {
                (true, 'n') => value.push('\n'),
                (true, c) => value.push(c),
                (false, '\\') => {}
                (false, '"') => {
                    end = Some(index);
                    break;
                }
                (false, c) => value.push(c),
            }
            escaped = !escaped && c == '\\';
        }
        labels.insert(key.to_owned(), value);
        text = &rest[end? + 1..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_labels_and_values() {
        let text = "# HELP a b\nplain 3\nrequest_total{direction=\"inbound\",path=\"a\\\"b,}c\",tls=\"true\"} 12\nbad{x=\"1 7\n";
        let series = parse(text);
        assert_eq!(series.len(), 2);
        assert_eq!(sum(&series, "plain", &[]), 3.0);
        assert_eq!(series[1].label("path"), "a\"b,}c");
        assert_eq!(
            sum(
                &series,
                "request_total",
                &[("direction", "inbound"), ("tls", "true")]
            ),
            12.0
        );
        assert_eq!(sum(&series, "request_total", &[("tls", "false")]), 0.0);
    }
}
