//! Waits until the proxy is ready: what a plain sidecar's postStart hook runs, since its image has no shell.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

/// Why the wait ended without success.
#[derive(Debug, thiserror::Error)]
pub enum ReadyError {
    /// The time is over.
    #[error("the proxy was not ready at http://{address}/ready within {} s; the last try: {last}", .timeout.as_secs())]
    Timeout {
        /// Where the proxy was asked.
        address: SocketAddr,
        /// How long.
        timeout: Duration,
        /// What the last try came to.
        last: String,
    },
}

const BETWEEN_TRIES: Duration = Duration::from_millis(100);
const TRY_TIMEOUT: Duration = Duration::from_secs(1);
/// A status line is far shorter; the rest of an answer does not matter.
const STATUS_LINE_BYTES_MAX: u64 = 64;

/// Asks `GET /ready` on loopback until the answer is 200.
///
/// # Errors
/// The time is over.
pub fn wait(port: u16, timeout: Duration) -> Result<(), ReadyError> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let deadline = Instant::now() + timeout;
    loop {
        let last = match ask(address) {
            Ok(status) if status.split(' ').nth(1) == Some("200") => return Ok(()),
            Ok(status) => format!("`{}`", status.trim_end()),
            Err(error) => error.to_string(),
        };
        if Instant::now() + BETWEEN_TRIES >= deadline {
            return Err(ReadyError::Timeout {
                address,
                timeout,
                last,
            });
        }
        thread::sleep(BETWEEN_TRIES);
    }
}

fn ask(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TRY_TIMEOUT)?;
    stream.set_read_timeout(Some(TRY_TIMEOUT))?;
    stream.set_write_timeout(Some(TRY_TIMEOUT))?;
    stream.write_all(b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut line = Vec::new();
    BufReader::new(stream.take(STATUS_LINE_BYTES_MAX)).read_until(b'\n', &mut line)?;
    Ok(String::from_utf8_lossy(&line).into_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Answers connections, one after the other, with these status lines.
    fn serve(answers: &'static [&'static str]) -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("bound").port();
        thread::spawn(move || {
            for answer in answers {
                let Ok((mut stream, _)) = listener.accept() else {
                    return;
                };
                let mut request = [0; 256];
                let _ = stream.read(&mut request);
                let _ = write!(stream, "{answer}\r\nContent-Length: 0\r\n\r\n");
            }
        });
        port
    }

    #[test]
    fn waits_until_the_answer_is_200() {
        let port = serve(&["HTTP/1.1 503 Service Unavailable", "HTTP/1.1 200 OK"]);
        wait(port, Duration::from_secs(10)).expect("ready at the second try");
    }

    #[test]
    fn says_what_the_last_try_came_to() {
        let port = serve(&["HTTP/1.1 503 Service Unavailable"]);
        let error = wait(port, Duration::from_millis(50))
            .expect_err("never ready")
            .to_string();
        assert!(error.contains("503 Service Unavailable"), "{error}");
    }
}
