//! Running other programs: one place that bounds their time and turns a failure into a readable error.

use std::ffi::OsStr;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Longest that an administrative command (`ip`, `git`, `ctr`) may take.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Most output kept of one command; the rest is read and dropped, so that the command never blocks on a full pipe.
const OUTPUT_MAX_BYTES: usize = 8 << 20;

/// Runs `command` to its end within [`LIMIT`] and returns its standard output.
pub fn run(command: &mut Command) -> Result<String> {
    run_within(command, LIMIT)
}

/// Runs `program` with `args`; see [`run`].
pub fn run_args<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Result<String> {
    run(Command::new(program).args(args))
}

/// Runs `command` to its end within `limit`; an unsuccessful end is an error that carries the command and what it said.
pub fn run_within(command: &mut Command, limit: Duration) -> Result<String> {
    let shown = show(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("failed to start `{shown}`"))?;
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child
            .try_wait()
            .with_context(|| format!("failed to wait for `{shown}`"))?
        {
            break status;
        }
        if Instant::now() > deadline {
            // The child may have ended between the check and the kill: then there is nothing to kill.
            let _ = child.kill();
            let _ = child.wait();
            bail!("`{shown}` did not end within {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let (stdout, stderr) = (collect(stdout), collect(stderr));
    if !status.success() {
        let said = if stderr.trim().is_empty() {
            stdout.trim()
        } else {
            stderr.trim()
        };
        bail!(
            "`{shown}` failed ({status}): {}",
            if said.is_empty() { "it said nothing" } else { said }
        );
    }
    Ok(stdout)
}

type Reader = Option<std::thread::JoinHandle<Vec<u8>>>;

fn drain(pipe: Option<impl Read + Send + 'static>) -> Reader {
    let mut pipe = pipe?;
    Some(std::thread::spawn(move || {
        let (mut kept, mut buffer) = (Vec::new(), [0; 16 << 10]);
        while let Ok(read @ 1..) = pipe.read(&mut buffer) {
            let room = OUTPUT_MAX_BYTES.saturating_sub(kept.len());
            kept.extend_from_slice(&buffer[..read.min(room)]);
        }
        kept
    }))
}

fn collect(reader: Reader) -> String {
    let bytes = reader.and_then(|reader| reader.join().ok()).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The command as a person would type it, for messages.
pub fn show(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|part| part.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_carries_the_command_and_what_it_said() {
        let error = run_args("sh", ["-c", "echo no such luck >&2; exit 3"])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("sh -c") && error.contains("no such luck") && error.contains('3'),
            "{error}"
        );
    }

    #[test]
    fn a_command_that_hangs_is_ended() {
        let error = run_within(Command::new("sleep").arg("60"), Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("did not end"), "{error}");
    }

    #[test]
    fn a_chatty_command_does_not_block() {
        let out = run_args("sh", ["-c", "head -c 1000000 /dev/zero | tr '\\0' x"]).unwrap();
        assert_eq!(out.len(), 1_000_000);
    }
}
