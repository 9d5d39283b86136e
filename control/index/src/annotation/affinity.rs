//! Session affinity of a Service.

use heddle_control_core::balance::{Affinity, Carrier, HashKey, Persistence};
use http::HeaderName;

use super::Reader;

const AFFINITY: &str = "balancer.heddle.dev/session-affinity";
const NAME: &str = "balancer.heddle.dev/session-affinity-name";
const IDLE_TIMEOUT: &str = "balancer.heddle.dev/session-affinity-idle-timeout";
const ABSOLUTE_TIMEOUT: &str = "balancer.heddle.dev/session-affinity-absolute-timeout";

/// What is read here.
pub(super) const KEYS: &[&str] = &[AFFINITY, NAME, IDLE_TIMEOUT, ABSOLUTE_TIMEOUT];

/// The session's cookie or header when no name is given.
pub(crate) const DEFAULT_NAME: &str = "heddle-session";

#[derive(Clone, Copy)]
enum Mode {
    Persist(Carrier),
    Hash(Carrier),
    HashSource,
}

impl Reader<'_> {
    pub(super) fn affinity(&mut self) -> Option<Affinity> {
        let mode = self.read(AFFINITY, |text| match text {
            "cookie" => Ok(Mode::Persist(Carrier::Cookie)),
            "header" => Ok(Mode::Persist(Carrier::Header)),
            "hash-cookie" => Ok(Mode::Hash(Carrier::Cookie)),
            "hash-header" => Ok(Mode::Hash(Carrier::Header)),
            "hash-source" => Ok(Mode::HashSource),
            _ => Err("cookie, header, hash-cookie, hash-header or hash-source".to_owned()),
        });
        let name = self.read(NAME, |text| {
            // Header names and cookie names are the same kind of token.
            HeaderName::try_from(text)
                .map(|_| text.to_owned())
                .map_err(|_| "the name of a header or cookie".to_owned())
        });
        let (idle_timeout, absolute_timeout) = (self.timeout(IDLE_TIMEOUT), self.timeout(ABSOLUTE_TIMEOUT));
        let Some(mode) = mode else {
            self.useless(
                &[NAME, IDLE_TIMEOUT, ABSOLUTE_TIMEOUT],
                &format!("{AFFINITY} beside it"),
            );
            return None;
        };
        let timeouts = [IDLE_TIMEOUT, ABSOLUTE_TIMEOUT];
        match mode {
            Mode::Persist(carrier) => Some(Affinity::Persist(Persistence {
                carrier,
                name: name.unwrap_or_else(|| DEFAULT_NAME.to_owned()),
                idle_timeout,
                absolute_timeout,
                permanent: false,
            })),
            Mode::Hash(carrier) => {
                self.useless(&timeouts, "no timeout, because nothing is remembered of a hash");
                let Some(name) = name else {
                    self.complain(AFFINITY, format!("{NAME} beside it: what is to be hashed"));
                    return None;
                };
                Some(Affinity::Hash(HashKey::Named(carrier, name)))
            }
            Mode::HashSource => {
                self.useless(&timeouts, "no timeout, because nothing is remembered of a hash");
                self.useless(&[NAME], "no name, because the client's address is hashed");
                Some(Affinity::Hash(HashKey::Source))
            }
        }
    }

    fn useless(&mut self, keys: &[&str], expected: &str) {
        for key in keys {
            if self.has(key) {
                self.complain(key, expected);
            }
        }
    }
}
