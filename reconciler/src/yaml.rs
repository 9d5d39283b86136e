//! YAML in and out. The only module that knows the YAML crate, so that the crate can be exchanged.
//!
//! In goes text from Git or from a template; out come JSON values with the line they begin at, or an error with line
//! and column. Out goes block YAML in one canonical form, quoted so that YAML 1.1 readers (kubectl) and YAML 1.2
//! readers understand the same thing. This module knows nothing of Kubernetes.

use std::fmt;

use serde::Deserialize as _;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// A place in a text; both count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub line: usize,
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// Text that is no YAML, or YAML that has no place in Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct YamlError {
    /// Where, when the parser knows.
    pub place: Option<Place>,
    /// What is wrong, without the place.
    pub message: String,
}

/// One document of a stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// The line of the stream that the document begins at, from 1.
    pub line: usize,
    /// Its contents.
    pub value: Value,
}

/// One step of the way to a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Key(String),
    Index(usize),
}

/// Prints a path as `spec.values.ports[0]`.
pub fn path_text(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Key(key) if key.contains(['.', '/']) => text.push_str(&format!("[{key}]")),
            Step::Key(key) if text.is_empty() => text.push_str(key),
            Step::Key(key) => text.push_str(&format!(".{key}")),
            Step::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}

/// Parses all documents of a stream; empty ones are left out.
///
/// # Errors
/// The first thing that is wrong, at its line in the stream.
pub fn parse_documents(text: &str) -> Result<Vec<Document>, YamlError> {
    let mut documents = Vec::new();
    for (line, part) in split_documents(text) {
        let value = parse_one(part).map_err(|mut error| {
            if let Some(place) = &mut error.place {
                place.line += line - 1;
            }
            error
        })?;
        if !value.is_null() {
            documents.push(Document { line, value });
        }
    }
    Ok(documents)
}

/// Parses a text that must hold exactly one document.
///
/// # Errors
/// As [`parse_documents`]; also none or several documents.
pub fn parse_single(text: &str) -> Result<Document, YamlError> {
    let mut documents = parse_documents(text)?;
    if documents.len() > 1 {
        let place = Some(Place {
            line: documents[1].line,
            column: 1,
        });
        return Err(YamlError {
            place,
            message: "a second document begins here; expected only one".to_owned(),
        });
    }
    documents.pop().ok_or_else(|| YamlError {
        place: None,
        message: "the file is empty".to_owned(),
    })
}

/// Splits a stream at its `---` lines. A `---` in the first column always ends a document, even inside a block scalar.
fn split_documents(text: &str) -> Vec<(usize, &str)> {
    let mut parts = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 1, 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let marker = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker && offset > start {
            parts.push((start_line, &text[start..offset]));
            (start, start_line) = (offset, index + 1);
        }
        offset += line.len();
    }
    parts.push((start_line, &text[start..]));
    parts
}

fn parse_one(text: &str) -> Result<Value, YamlError> {
    // A part may still hold `...` and stray directives; the parser's own iterator refuses a second document.
    let raw = serde_yaml::Value::deserialize(serde_yaml::Deserializer::from_str(text)).or_else(|error| {
        // A part of nothing but comments has no document at all.
        let empty = text
            .lines()
            .all(|line| matches!(line.trim(), "" | "---" | "...") || line.trim_start().starts_with('#'));
        if empty {
            Ok(serde_yaml::Value::Null)
        } else {
            Err(from_yaml(&error))
        }
    })?;
    to_json(raw, &mut Vec::new()).map_err(|(path, message)| YamlError {
        place: locate(text, &path, Target::Value),
        message: format!("{}: {message}", path_text(&path)),
    })
}

fn from_yaml(error: &serde_yaml::Error) -> YamlError {
    let text = error.to_string();
    let message = match text.find(" at line ") {
        Some(end) if error.location().is_some() => text[..end].to_owned(),
        _ => text,
    };
    let place = error.location().map(|at| Place {
        line: at.line(),
        column: at.column(),
    });
    YamlError { place, message }
}

fn to_json(value: serde_yaml::Value, path: &mut Vec<Step>) -> Result<Value, (Vec<Step>, String)> {
    use serde_yaml::Value as Yaml;
    Ok(match value {
        Yaml::Null => Value::Null,
        Yaml::Bool(bool) => Value::Bool(bool),
        Yaml::String(string) => Value::String(string),
        Yaml::Number(number) => {
            if let Some(int) = number.as_i64() {
                Value::Number(int.into())
            } else if let Some(int) = number.as_u64() {
                Value::Number(int.into())
            } else {
                let float = number.as_f64().and_then(Number::from_f64);
                Value::Number(
                    float.ok_or_else(|| (path.clone(), format!("`{number}` is no number in JSON")))?,
                )
            }
        }
        Yaml::Sequence(items) => {
            let mut array = Vec::with_capacity(items.len());
            for (index, item) in items.into_iter().enumerate() {
                path.push(Step::Index(index));
                array.push(to_json(item, path)?);
                path.pop();
            }
            Value::Array(array)
        }
        Yaml::Mapping(mapping) => {
            let mut map = Map::new();
            for (key, item) in mapping {
                let key = match key {
                    Yaml::String(key) => key,
                    Yaml::Number(key) => key.to_string(),
                    Yaml::Bool(key) => key.to_string(),
                    other => return Err((path.clone(), format!("a key must be text, not {other:?}"))),
                };
                path.push(Step::Key(key.clone()));
                if key == "<<" {
                    return Err((
                        path.clone(),
                        "merge keys (`<<`) are not understood; write the fields out".to_owned(),
                    ));
                }
                let item = to_json(item, path)?;
                path.pop();
                map.insert(key, item);
            }
            Value::Object(map)
        }
        Yaml::Tagged(tagged) => {
            return Err((
                path.clone(),
                format!("the tag `{}` is not understood", tagged.tag),
            ));
        }
    })
}

/// Which end of a field to point at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The key of the path's last step.
    Key,
    /// The value behind it.
    Value,
}

/// Where a field stands in a text of one document.
///
/// Walks the parser's own events to the field and there provokes an error, whose place the parser then reports: so the
/// place is exact in block and flow style alike. `None` when there is no such field.
pub fn locate(text: &str, path: &[Step], target: Target) -> Option<Place> {
    let found = Locator { path, target }
        .deserialize(serde_yaml::Deserializer::from_str(text))
        .err()?;
    if !found.to_string().contains(FOUND) {
        return None;
    }
    found.location().map(|at| Place {
        line: at.line(),
        column: at.column(),
    })
}

const FOUND: &str = "the field that was looked for";

#[derive(Clone, Copy)]
struct Locator<'a> {
    path: &'a [Step],
    target: Target,
}

impl<'de> DeserializeSeed<'de> for Locator<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Locator<'_> {
    fn scalar<E: serde::de::Error>(self) -> Result<(), E> {
        if self.path.is_empty() {
            Err(E::custom(FOUND))
        } else {
            Ok(())
        }
    }
}

impl<'de> Visitor<'de> for Locator<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }
    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<(), E> {
        self.scalar()
    }
    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<(), E> {
        self.scalar()
    }
    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<(), E> {
        self.scalar()
    }
    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<(), E> {
        self.scalar()
    }
    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<(), E> {
        self.scalar()
    }
    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.scalar()
    }
    fn visit_none<E: serde::de::Error>(self) -> Result<(), E> {
        self.scalar()
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        self.deserialize(deserializer)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Some((first, rest)) = self.path.split_first() else {
            return Err(A::Error::custom(FOUND));
        };
        let mut index = 0;
        loop {
            let hit = matches!(first, Step::Index(wanted) if *wanted == index);
            let more = if hit {
                seq.next_element_seed(Locator {
                    path: rest,
                    target: if rest.is_empty() {
                        Target::Value
                    } else {
                        self.target
                    },
                })?
            } else {
                seq.next_element::<IgnoredAny>()?.map(|_| ())
            };
            if more.is_none() {
                return Ok(());
            }
            index += 1;
        }
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((first, rest)) = self.path.split_first() else {
            return Err(A::Error::custom(FOUND));
        };
        let Step::Key(wanted) = first else {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(());
        };
        let stop = rest.is_empty() && self.target == Target::Key;
        while let Some(hit) = map.next_key_seed(KeyLocator { wanted, stop })? {
            if hit {
                map.next_value_seed(Locator {
                    path: rest,
                    target: self.target,
                })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

struct KeyLocator<'a> {
    wanted: &'a str,
    stop: bool,
}

impl<'de> DeserializeSeed<'de> for KeyLocator<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for KeyLocator<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }
    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<bool, E> {
        let hit = key == self.wanted;
        if hit && self.stop {
            Err(E::custom(FOUND))
        } else {
            Ok(hit)
        }
    }
}

/// Prints a value as block YAML that ends with a newline. Keys are in order; `apiVersion`, `kind` and `metadata` come
/// first, as people write them.
pub fn print(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => print_map(&mut out, map, 0, false),
        Value::Array(items) if !items.is_empty() => print_items(&mut out, items, 0),
        other => {
            print_scalar(&mut out, other, 0);
            out.push('\n');
        }
    }
    out
}

fn print_map(out: &mut String, map: &Map<String, Value>, indent: usize, first_inline: bool) {
    const FRONT: [&str; 4] = ["apiVersion", "kind", "metadata", "name"];
    let front = FRONT.iter().filter_map(|key| map.get_key_value(*key));
    let mut rest: Vec<_> = map
        .iter()
        .filter(|(key, _)| !FRONT.contains(&key.as_str()))
        .collect();
    rest.sort_by_key(|(key, _)| *key);
    for (index, (key, value)) in front.chain(rest).enumerate() {
        if index > 0 || !first_inline {
            out.extend(std::iter::repeat_n(' ', indent));
        }
        print_text(out, key);
        out.push(':');
        print_nested(out, value, indent);
    }
}

fn print_items(out: &mut String, items: &[Value], indent: usize) {
    for item in items {
        out.extend(std::iter::repeat_n(' ', indent));
        out.push('-');
        match item {
            Value::Object(map) if !map.is_empty() => {
                out.push(' ');
                print_map(out, map, indent + 2, true);
            }
            Value::Array(inner) if !inner.is_empty() => {
                out.push('\n');
                print_items(out, inner, indent + 2);
            }
            scalar => {
                out.push(' ');
                print_scalar(out, scalar, indent + 2);
                out.push('\n');
            }
        }
    }
}

fn print_nested(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            out.push('\n');
            print_map(out, map, indent + 2, false);
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            print_items(out, items, indent);
        }
        scalar => {
            out.push(' ');
            print_scalar(out, scalar, indent + 2);
            out.push('\n');
        }
    }
}

fn print_scalar(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(_) => out.push_str("{}"),
        Value::Array(_) => out.push_str("[]"),
        Value::String(text) if text.contains('\n') && literal_is_safe(text) => {
            out.push_str(if text.ends_with("\n\n") || text == "\n" {
                "|+"
            } else if text.ends_with('\n') {
                "|"
            } else {
                "|-"
            });
            for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
                out.push('\n');
                if !line.is_empty() {
                    out.extend(std::iter::repeat_n(' ', indent));
                    out.push_str(line);
                }
            }
        }
        Value::String(text) => print_text(out, text),
        other => out.push_str(&other.to_string()),
    }
}

/// A literal block cannot begin with a space or an empty line without an indentation mark, and cannot hold control
/// characters; such text is quoted instead.
fn literal_is_safe(text: &str) -> bool {
    !text.starts_with([' ', '\n', '\t'])
        && !text
            .chars()
            .any(|char| char.is_control() && char != '\n' && char != '\t')
        && !text.contains('\u{feff}')
        && !text.contains(['\u{85}', '\u{2028}', '\u{2029}'])
}

fn print_text(out: &mut String, text: &str) {
    if is_plain(text) {
        out.push_str(text);
    } else {
        // A JSON string is a double-quoted YAML scalar, but for characters that YAML takes for breaks or refuses.
        for char in Value::String(text.to_owned()).to_string().chars() {
            match char {
                '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' => {
                    out.push_str(&format!("\\u{:04x}", char as u32))
                }
                char => out.push(char),
            }
        }
    }
}

/// Whether every YAML reader takes the bare text as this very string. Strict: what is doubtful gets quotes.
fn is_plain(text: &str) -> bool {
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return false };
    let word = |char: char| {
        char.is_ascii_alphanumeric()
            || matches!(char, '_' | '/' | '.' | '-' | '+' | '@' | '=' | ',' | '(' | ')')
    };
    let body = |char: char| word(char) || char == ' ' || char == ':' || char == '%';
    // What YAML 1.1 takes for booleans, null or numbers.
    const RESERVED: [&str; 11] = [
        "y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf",
    ];
    (first.is_ascii_alphabetic() || matches!(first, '_' | '/'))
        && chars.all(body)
        && !text.contains(": ")
        && !text.ends_with([':', ' '])
        && !RESERVED.contains(&text.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests;
