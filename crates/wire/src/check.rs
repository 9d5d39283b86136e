//! What is refused, and the bounds of what is not.

use http::{
    HeaderName,
    uri::{Authority, PathAndQuery},
};

/// Entries in any list of the extension.
pub(crate) const LIST_MAX: usize = 4096;

/// Mirrors of one rule or backend. The Gateway API allows 16 filters.
pub(crate) const MIRRORS_MAX: usize = 16;

/// Bytes of any one text. The Gateway API allows 1024 for a path and for an expression.
pub(crate) const TEXT_BYTES_MAX: usize = 2048;

/// Why bytes are no policy with an extension.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes are not the message.
    #[error("failed to decode an outbound policy")]
    Decode(#[from] prost::DecodeError),
    /// A field of the extension breaks a rule.
    #[error("extension: field `{field}` is invalid: expected {expected}")]
    Invalid {
        /// The field's path inside the extension.
        field: &'static str,
        /// What was expected.
        expected: &'static str,
    },
}

pub(crate) fn invalid(field: &'static str, expected: &'static str) -> WireError {
    WireError::Invalid { field, expected }
}

pub(crate) fn list<T>(field: &'static str, list: &[T], max: usize) -> Result<(), WireError> {
    match list.len() <= max {
        true => Ok(()),
        false => Err(invalid(field, "fewer entries")),
    }
}

pub(crate) fn text(field: &'static str, text: String) -> Result<String, WireError> {
    match !text.is_empty() && text.len() <= TEXT_BYTES_MAX {
        true => Ok(text),
        false => Err(invalid(field, "a text of 1 to 2048 bytes")),
    }
}

/// Header names and cookie names are the same kind of token.
pub(crate) fn name(field: &'static str, name: String) -> Result<String, WireError> {
    let name = text(field, name)?;
    match HeaderName::try_from(&name) {
        Ok(_) => Ok(name),
        Err(_) => Err(invalid(field, "the name of a header or cookie")),
    }
}

pub(crate) fn host(field: &'static str, host: String) -> Result<String, WireError> {
    let host = text(field, host)?;
    match Authority::try_from(host.as_str()) {
        Ok(authority) if authority.host() == host => Ok(host),
        _ => Err(invalid(field, "a host name without a port")),
    }
}

pub(crate) fn path(field: &'static str, path: String) -> Result<String, WireError> {
    let path = text(field, path)?;
    let plain = path.starts_with('/') && !path.contains(['?', '#']);
    match plain && PathAndQuery::try_from(path.as_str()).is_ok() {
        true => Ok(path),
        false => Err(invalid(
            field,
            "a path that begins with / and has neither query nor fragment",
        )),
    }
}
