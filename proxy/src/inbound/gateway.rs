//! The gateway: peers' connections for services of this cluster, which their transport headers name. Where the injector
//! has made the proxy one, names below its suffixes that the control plane knows are served to peers that prove an
//! identity and that the policy of the proxy's own port allows; all others are not, so that it is no open relay.

use std::{pin::pin, rc::Rc};

use http::{HeaderMap, HeaderValue, Request, Response, Version, header};
use tokio::time::Instant;

use super::{Carries, InboundError, Known, http::Connection, tcp::Judge};
use crate::{
    dst::NameAddr,
    http::{
        ProxyError, ResponseBody, headers,
        incoming::Incoming,
        is_grpc,
        live::{Forbidden, Live},
        serve,
    },
    outbound::{OutboundError, Through},
    worker::Worker,
};

pub(super) async fn serve(
    worker: &Rc<Worker>,
    known: Box<Known>,
    drain: drain::Watch,
    carries: Carries,
    name: NameAddr,
) -> Result<(), InboundError> {
    let Known {
        mut io,
        client,
        peer,
        unmeshed,
        port,
    } = *known;
    let Some(id) = client.tls.identity() else {
        return Err(InboundError::NoIdentity);
    };
    if !worker.config.inbound.gateway_suffixes.contain(&name) {
        return Err(InboundError::NotServed(name));
    }
    match carries {
        Carries::Bytes => {
            let judge = Judge {
                worker,
                port: &port,
                client: &client,
                unmeshed: &unmeshed,
            };
            judge.permit(&io)?;
            let through = Through::to(worker, name, peer, drain.clone()).await;
            let through = through.map_err(OutboundError::from)?;
            let result = tokio::select! {
                copied = through.copy(&mut io) => Some(copied),
                () = judge.until_forbidden() => None,
            };
            drop(drain);
            match result {
                Some(copied) => Ok(copied?),
                None => Err(judge.terminate(&io)),
            }
        }
        Carries::Http(version) => {
            let forwarded = Forwarded::new(worker.tls.name().as_str(), id.as_str());
            let connection = Connection::new(worker.clone(), port, client, peer, unmeshed, drain.clone());
            let gateway = Rc::new(Gateway {
                connection,
                through: Through::to(worker, name.clone(), peer, drain.clone()).await,
                name,
                forwarded,
            });
            let handle = move |request| {
                let gateway = gateway.clone();
                async move { gateway.respond(request).await }
            };
            // Only peers with an identity get here.
            let http2 = worker.config.inbound.http2.at_most(serve::STREAMS_MAX);
            serve::serve(worker.clone(), drain, io, version, http2, handle).await;
            Ok(())
        }
    }
}

/// A peer's connection with HTTP for a service.
struct Gateway {
    connection: Connection,
    through: Result<Through, ProxyError>,
    name: NameAddr,
    forwarded: Forwarded,
}

/// What this gateway adds to `forwarded` (RFC 7239), and knows itself by.
struct Forwarded {
    by: String,
    value: String,
}

impl Gateway {
    async fn respond(&self, mut request: Request<Incoming>) -> Response<ResponseBody> {
        match self.connection.received(&mut request) {
            None => self.answer(request).await,
            Some(observed) => Box::pin(observed.watch(self.answer(request))).await,
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<ResponseBody> {
        let grpc = is_grpc(request.headers());
        match self.request(request).await {
            Ok(response) => response,
            // Peers speak HTTP/2, or read the header that comes with it.
            Err(error) => self.connection.failure(&error, grpc, false),
        }
    }

    async fn request(&self, mut request: Request<Incoming>) -> Result<Response<ResponseBody>, ProxyError> {
        let started = Instant::now();
        let policy = self.connection.policy();
        let (_, handles) = self.connection.admit(&policy, &request, started)?;
        if self.forwarded.is_in(request.headers()) {
            return Err(ProxyError::GatewayLoop);
        }
        let through = match &self.through {
            Ok(through) => through,
            Err(ProxyError::NoSuchService) => return Err(ProxyError::NotServed(self.name.clone())),
            Err(error) => return Err(ProxyError::Unavailable(error.to_string().into())),
        };
        let orig_proto = headers::downgrade_to_h1(&mut request);
        let value = self.forwarded.with_host(&request);
        request.headers_mut().append(header::FORWARDED, value);
        headers::strip_forgeable(request.headers_mut());
        let mut live = Live::new(&handles.leave);
        let answered = live.wait(pin!(through.respond(request))).await;
        let mut response = answered.map_err(|Forbidden| self.connection.forbidden(&handles))?;
        if orig_proto {
            let proto = HeaderValue::from_static("HTTP/1.1");
            response.headers_mut().insert(headers::ORIG_PROTO, proto);
            headers::strip_connection(response.headers_mut());
            *response.version_mut() = Version::HTTP_2;
        }
        let response = handles.counted(response, started);
        Ok(response.map(|body| body.live(live)))
    }
}

impl Forwarded {
    fn new(by: &str, client: &str) -> Self {
        Self {
            by: format!("by={by}"),
            value: format!("by={by};for={client}"),
        }
    }

    /// Whether this gateway is among those that a request has been at.
    fn is_in(&self, headers: &HeaderMap) -> bool {
        headers
            .get_all(header::FORWARDED)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split([',', ';']))
            .any(|part| {
                let part = part.trim();
                let unquoted = part.replace('"', "");
                unquoted.eq_ignore_ascii_case(&self.by)
            })
    }

    fn with_host<B>(&self, request: &Request<B>) -> HeaderValue {
        let host = headers::authority(request);
        let quoted = host.filter(|host| !host.contains(['"', '\\'])).unwrap_or("");
        let value = format!("{};host=\"{quoted}\";proto=https", self.value);
        // Identities are DNS names or URIs, and a host that came in a header fits in one.
        HeaderValue::try_from(value).unwrap_or(HeaderValue::from_static("by=unknown"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_knows_where_a_request_has_been() {
        let own = Forwarded::new("gateway.mc.identity.test", "web.ns.identity.test");
        let request = |value: &str| {
            let request = Request::get("http://web.test/").header(header::FORWARDED, value);
            request.body(()).expect("valid")
        };
        let first = own.with_host(&request("for=other"));
        for seen in [
            first.to_str().expect("text"),
            "for=a, by=Gateway.mc.identity.test;for=b",
            "by=\"gateway.mc.identity.test\"",
        ] {
            assert!(own.is_in(request(seen).headers()), "{seen}");
        }
        for other in ["by=gateway.mc.identity.tests", "for=gateway.mc.identity.test", ""] {
            assert!(!own.is_in(request(other).headers()), "{other}");
        }
    }
}
