//! Filters of routes.

use heddle_control_core::route::{Filter, HeaderModifier, PathModifier, Redirect, Rewrite, Scheme};
use http::{
    HeaderName, HeaderValue,
    uri::{Authority, PathAndQuery},
};

use super::{
    BackendRef, MirrorRef, RouteError, bad, header_name, header_value,
    spec::{
        FilterSpec, HeaderModifierSpec, HeaderSpec, MirrorSpec, PathModifierSpec, RedirectSpec, RewriteSpec,
    },
};

/// Filters, and apart from them where requests are mirrored to.
pub(super) fn read_all(specs: Vec<FilterSpec>) -> Result<(Vec<Filter>, Vec<MirrorRef>), RouteError> {
    let (mut filters, mut mirrors) = (Vec::new(), Vec::new());
    for spec in specs {
        match spec.kind.as_str() {
            "RequestMirror" => mirrors.push(mirror(spec.request_mirror)?),
            _ => filters.push(read(spec)?),
        }
    }
    Ok((filters, mirrors))
}

fn read(spec: FilterSpec) -> Result<Filter, RouteError> {
    Ok(match spec.kind.as_str() {
        "RequestHeaderModifier" => {
            Filter::RequestHeaders(headers(spec.request_header_modifier.unwrap_or_default())?)
        }
        "ResponseHeaderModifier" => {
            Filter::ResponseHeaders(headers(spec.response_header_modifier.unwrap_or_default())?)
        }
        "RequestRedirect" => Filter::Redirect(redirect(spec.request_redirect.unwrap_or_default())?),
        "URLRewrite" => Filter::Rewrite(rewrite(spec.url_rewrite.unwrap_or_default())?),
        other => return Err(RouteError::Unsupported(other.to_owned())),
    })
}

/// The proxy refuses more; the Gateway API allows no more in its CRD.
const SHARE_MAX: u32 = 1_000_000;

fn mirror(spec: Option<MirrorSpec>) -> Result<MirrorRef, RouteError> {
    let spec = spec.ok_or_else(|| bad("requestMirror", "", "backend to mirror to"))?;
    let share = match (spec.percent, spec.fraction) {
        (Some(percent), _) => (percent, 100),
        (None, Some(fraction)) => (fraction.numerator, fraction.denominator.unwrap_or(100)),
        (None, None) => (1, 1),
    };
    let (numerator, denominator) = share;
    if denominator == 0 || numerator > denominator || denominator > SHARE_MAX {
        let share = format!("{numerator}/{denominator}");
        return Err(bad("requestMirror", &share, "share from 0 to 1"));
    }
    Ok(MirrorRef {
        backend: Box::new(BackendRef::read(spec.backend_ref)?),
        share,
    })
}

fn rewrite(spec: RewriteSpec) -> Result<Rewrite, RouteError> {
    let RewriteSpec { hostname, path } = spec;
    if let Some(host) = &hostname {
        checked_host("urlRewrite.hostname", host)?;
    }
    Ok(Rewrite {
        host: hostname,
        path: path
            .map(|path| path_modifier("urlRewrite.path", path))
            .transpose()?,
    })
}

fn checked_host(field: &'static str, host: &str) -> Result<(), RouteError> {
    match Authority::try_from(host) {
        Ok(authority) if authority.host() == host => Ok(()),
        _ => Err(bad(field, host, "host name")),
    }
}

fn path_modifier(field: &'static str, spec: PathModifierSpec) -> Result<PathModifier, RouteError> {
    let PathModifierSpec {
        kind,
        replace_full_path,
        replace_prefix_match,
    } = spec;
    let checked = |path: String| match path.as_str() {
        // The Gateway API: an empty prefix and / are the same.
        "" => Ok("/".to_owned()),
        text if text.starts_with('/')
            && !text.contains(['?', '#'])
            && PathAndQuery::try_from(text).is_ok() =>
        {
            Ok(path)
        }
        text => Err(bad(field, text, "path that begins with /")),
    };
    match (kind.as_str(), replace_full_path, replace_prefix_match) {
        ("ReplaceFullPath", Some(full), _) => checked(full).map(PathModifier::Full),
        ("ReplacePrefixMatch", _, Some(prefix)) => checked(prefix).map(PathModifier::Prefix),
        (kind, ..) => Err(bad(
            field,
            kind,
            "ReplaceFullPath or ReplacePrefixMatch with its value",
        )),
    }
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
    let path = path.map(|path| path_modifier("requestRedirect.path", path));
    if let Some(host) = &hostname {
        checked_host("requestRedirect.hostname", host)?;
    }
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
