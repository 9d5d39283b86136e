//! Just enough of `go.mod` to learn which version of a module is required.

/// The version that `text` requires of `module`, in a single `require` line or in a block; replacements are
/// not followed, since the version names a build and the hash of the whole file tells builds apart.
pub(super) fn required_version(text: &str, module: &str) -> Option<String> {
    let mut in_require = false;
    for line in text.lines() {
        let line = line.split("//").next().unwrap_or_default().trim();
        let rest = match line {
            "require (" => {
                in_require = true;
                continue;
            }
            ")" => {
                in_require = false;
                continue;
            }
            _ => match line.strip_prefix("require ") {
                Some(rest) => rest,
                None if in_require => line,
                None => continue,
            },
        };
        let mut words = rest.split_whitespace();
        if words.next() == Some(module) {
            return words.next().map(str::to_owned);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::required_version;

    const TEXT: &str = "module heddle.dev/x\n\ngo 1.26.0\n\nrequire a.b/single v1.0.0 // why\n\nrequire (\n\ta.b/c v0.1.2\n\ta.b/c/v2 v2.3.4 // indirect\n)\n\nreplace a.b/d => a.b/e v9.9.9\n";

    #[test]
    fn versions_are_read_from_lines_and_blocks() {
        assert_eq!(required_version(TEXT, "a.b/single").as_deref(), Some("v1.0.0"));
        assert_eq!(required_version(TEXT, "a.b/c").as_deref(), Some("v0.1.2"));
        assert_eq!(required_version(TEXT, "a.b/c/v2").as_deref(), Some("v2.3.4"));
    }

    #[test]
    fn what_is_not_required_has_no_version() {
        assert_eq!(required_version(TEXT, "a.b/d"), None);
        assert_eq!(required_version(TEXT, "a.b"), None);
        assert_eq!(required_version("", "a.b/c"), None);
    }
}
