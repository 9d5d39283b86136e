//! Filters of routes.

use heddle_control_core::route::{Filter, HeaderModifier, PathModifier, Redirect, Scheme};
use http::{HeaderName, HeaderValue};

use super::{
    RouteError, bad, header_name, header_value,
    spec::{FilterSpec, HeaderModifierSpec, HeaderSpec, RedirectSpec},
};

pub(super) fn read(spec: FilterSpec) -> Result<Filter, RouteError> {
    Ok(match spec.kind.as_str() {
        "RequestHeaderModifier" => {
            Filter::RequestHeaders(headers(spec.request_header_modifier.unwrap_or_default())?)
        }
        "ResponseHeaderModifier" => {
            Filter::ResponseHeaders(headers(spec.response_header_modifier.unwrap_or_default())?)
        }
        "RequestRedirect" => Filter::Redirect(redirect(spec.request_redirect.unwrap_or_default())?),
        other => return Err(RouteError::Unsupported(other.to_owned())),
    })
}

fn headers(spec: HeaderModifierSpec) -> Result<HeaderModifier, RouteError> {
    let HeaderModifierSpec { add, set, remove } = spec;
    let remove = remove
        .iter()
        .map(|name| header_name(name))
        .collect::<Result<_, _>>()?;
    Ok(HeaderModifier {
        add: pairs(add)?,
        set: pairs(set)?,
        remove,
    })
}

fn pairs(specs: Vec<HeaderSpec>) -> Result<Vec<(HeaderName, HeaderValue)>, RouteError> {
    specs
        .into_iter()
        .map(|HeaderSpec { name, value }| Ok((header_name(&name)?, header_value(&value)?)))
        .collect()
}

fn redirect(spec: RedirectSpec) -> Result<Redirect, RouteError> {
    let RedirectSpec {
        scheme,
        hostname,
        path,
        port,
        status_code,
    } = spec;
    let scheme = scheme.map(|scheme| match scheme.as_str() {
        "http" => Ok(Scheme::Http),
        "https" => Ok(Scheme::Https),
        other => Err(bad("requestRedirect.scheme", other, "http or https")),
    });
    let path = path.map(|path| {
        match (
            path.kind.as_str(),
            path.replace_full_path,
            path.replace_prefix_match,
        ) {
            ("ReplaceFullPath", Some(full), _) => Ok(PathModifier::Full(full)),
            ("ReplacePrefixMatch", _, Some(prefix)) => Ok(PathModifier::Prefix(prefix)),
            (kind, ..) => Err(bad(
                "requestRedirect.path.type",
                kind,
                "ReplaceFullPath or ReplacePrefixMatch with its value",
            )),
        }
    });
    if status_code.is_some_and(|status| !(300..400).contains(&status)) {
        return Err(bad(
            "requestRedirect.statusCode",
            &status_code.unwrap_or_default().to_string(),
            "redirect status",
        ));
    }
    Ok(Redirect {
        scheme: scheme.transpose()?,
        host: hostname,
        path: path.transpose()?,
        port,
        status: status_code,
    })
}
