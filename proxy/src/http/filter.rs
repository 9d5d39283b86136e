//! A rule's filters at work.

use heddle_proxy_policy::filter::{FailureCode, Filter};
use http::{HeaderMap, HeaderValue, Request, Response, Uri, header, request::Parts};

use super::{ProxyError, ResponseBody, error, headers};

/// Applies filters to a request; one of them may answer in the server's place. `prefix` is the part of
/// the path by which the rule was chosen.
pub(crate) fn request<B>(
    filters: &[Filter],
    prefix: Option<&str>,
    request: &mut Request<B>,
) -> Result<Option<Response<ResponseBody>>, ProxyError> {
    if filters.is_empty() {
        return Ok(None);
    }
    let mut uri = std::mem::take(request.uri_mut());
    let answer = apply(filters, prefix, &mut uri, request.headers_mut());
    *request.uri_mut() = uri;
    answer
}

/// As [`request`], with a backend's filters. A backend that cannot be found is one whose filter answers.
pub(crate) fn to_backend(
    filters: &[Filter],
    prefix: Option<&str>,
    head: &mut Parts,
) -> Result<Option<Response<ResponseBody>>, ProxyError> {
    apply(filters, prefix, &mut head.uri, &mut head.headers)
}

fn apply(
    filters: &[Filter],
    prefix: Option<&str>,
    uri: &mut Uri,
    headers: &mut HeaderMap,
) -> Result<Option<Response<ResponseBody>>, ProxyError> {
    for filter in filters {
        match filter {
            Filter::RequestHeaders(change) => change.apply(headers),
            Filter::ResponseHeaders(_) => {}
            Filter::Rewrite(rewrite) => {
                if !rewrite.apply(uri, headers, prefix) {
                    return Err(ProxyError::BadRequest("no URI"));
                }
            }
            Filter::Redirect(redirect) => {
                let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
                let (status, target) = redirect
                    .target(uri, host, prefix)
                    .ok_or(ProxyError::BadRequest("no host to redirect"))?;
                let location = HeaderValue::from_str(&target.to_string())
                    .map_err(|_| ProxyError::BadRequest("no URI"))?;
                let mut response = error::plain(status);
                response.headers_mut().insert(header::LOCATION, location);
                return Ok(Some(response));
            }
            Filter::Fail(fail) if fail.strikes(rand::random()) => {
                return Ok(Some(injected(&fail.code, &fail.message)));
            }
            Filter::Fail(_) => {}
        }
    }
    Ok(None)
}

/// Applies filters to a response.
pub(crate) fn response(filters: &[Filter], response: &mut Response<ResponseBody>) {
    for filter in filters {
        if let Filter::ResponseHeaders(change) = filter {
            change.apply(response.headers_mut());
        }
    }
}

fn injected(code: &FailureCode, message: &str) -> Response<ResponseBody> {
    let message = HeaderValue::from_str(message).unwrap_or(HeaderValue::from_static("injected"));
    match code {
        FailureCode::Http(status) => {
            let mut response = error::plain(*status);
            response.headers_mut().insert(headers::PROXY_ERROR, message);
            response
        }
        FailureCode::Grpc(code) => {
            let mut response = Response::new(ResponseBody::empty());
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            response
                .headers_mut()
                .insert("grpc-status", HeaderValue::from(*code));
            response.headers_mut().insert("grpc-message", message);
            response
        }
    }
}
