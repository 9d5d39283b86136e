//! Session persistence of rules.

use heddle_control_core::balance::{Carrier, Persistence};
use http::HeaderName;

use super::{
    RouteError, bad, gateway_duration,
    spec::{CookieSpec, SessionSpec},
};
use crate::annotation::DEFAULT_SESSION_NAME;

pub(super) fn read(spec: SessionSpec) -> Result<Persistence, RouteError> {
    let SessionSpec {
        session_name,
        absolute_timeout,
        idle_timeout,
        kind,
        cookie_config,
    } = spec;
    let carrier = match kind.as_deref() {
        None | Some("Cookie") => Carrier::Cookie,
        Some("Header") => Carrier::Header,
        Some(other) => return Err(bad("sessionPersistence.type", other, "Cookie or Header")),
    };
    let name = session_name.unwrap_or_else(|| DEFAULT_SESSION_NAME.to_owned());
    // Header names and cookie names are the same kind of token.
    if HeaderName::try_from(name.as_str()).is_err() {
        return Err(bad(
            "sessionPersistence.sessionName",
            &name,
            "name of a header or cookie",
        ));
    }
    let lifetime = cookie_config.and_then(|CookieSpec { lifetime_type }| lifetime_type);
    let permanent = match lifetime.as_deref() {
        None | Some("Session") => false,
        Some("Permanent") => true,
        Some(other) => {
            return Err(bad(
                "sessionPersistence.cookieConfig.lifetimeType",
                other,
                "Session or Permanent",
            ));
        }
    };
    let timeout = |text: Option<String>| {
        let timeout = text.map(|text| gateway_duration(&text)).transpose()?;
        Ok::<_, RouteError>(timeout.filter(|timeout| !timeout.is_zero()))
    };
    let absolute_timeout = timeout(absolute_timeout)?;
    if permanent && absolute_timeout.is_none() {
        return Err(bad(
            "sessionPersistence.cookieConfig.lifetimeType",
            "Permanent",
            "lifetime without an absoluteTimeout",
        ));
    }
    Ok(Persistence {
        carrier,
        name,
        idle_timeout: timeout(idle_timeout)?,
        absolute_timeout,
        permanent,
    })
}
