//! Which shared objects a program needs to start.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::command::run_args;

/// The loader and libraries of `program`, as the loader itself resolves them; none for a static program.
pub(super) fn shared_objects(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = run_args("ldd", [program]);
    let listed = match listed {
        // A static program is a failure to ldd.
        Err(error) if format!("{error:#}").contains("not a dynamic executable") => return Ok(Vec::new()),
        listed => {
            listed.with_context(|| format!("failed to learn which libraries {} needs", program.display()))?
        }
    };
    parse(&listed).with_context(|| format!("failed to learn which libraries {} needs", program.display()))
}

fn parse(listed: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in listed.lines().map(str::trim) {
        let (name, resolved) = match line.split_once(" => ") {
            Some((name, resolved)) => (name, resolved),
            None => (line, line),
        };
        if resolved.starts_with("not found") {
            bail!("the library {name} is not installed");
        }
        // The kernel's own object and the word for static programs have no path.
        if let Some(path) = resolved
            .split_whitespace()
            .next()
            .filter(|path| path.starts_with('/'))
        {
            found.push(PathBuf::from(path));
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_from_both_kinds_of_line() {
        let listed = "\tlinux-vdso.so.1 (0x0)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x1)\n\t/lib64/ld-linux-x86-64.so.2 (0x2)\n";
        let paths = parse(listed).unwrap();
        assert_eq!(
            paths,
            ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from)
        );
    }

    #[test]
    fn a_static_program_needs_nothing_and_a_missing_library_is_named() {
        assert!(parse("\tstatically linked\n").unwrap().is_empty());
        let error = parse("\tlibssl.so.3 => not found\n").unwrap_err().to_string();
        assert!(error.contains("libssl.so.3"), "{error}");
    }
}
