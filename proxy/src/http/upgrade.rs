//! Requests that turn their connection into one of another protocol: `upgrade` (WebSocket and others) and CONNECT.
//! They travel as HTTP/1, each on a connection of its own, and become bytes when the server agrees.

use http::{Method, Request, Response, StatusCode};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tracing::debug;

use super::{ProxyError, RequestBody, ResponseBody, body::ClientBody, incoming::Incoming};

/// Sends the request; if the server agrees, copies both ways in a task of its own, which holds on to `held`.
pub(crate) async fn send(
    mut sender: SendRequest<RequestBody>,
    mut request: Request<Incoming>,
    held: impl Sized + 'static,
) -> Result<Response<ResponseBody>, ProxyError> {
    let connect = request.method() == Method::CONNECT;
    let client = hyper::upgrade::on(&mut request);
    let request = request.map(|body| RequestBody::Incoming(ClientBody::new(body, None)));
    let mut response = sender.send_request(request).await.map_err(ProxyError::Upgrade)?;
    let agreed =
        response.status() == StatusCode::SWITCHING_PROTOCOLS || (connect && response.status().is_success());
    if !agreed {
        return Ok(response.map(ResponseBody::hyper));
    }
    let server = hyper::upgrade::on(&mut response);
    tokio::task::spawn_local(async move {
        let copied = async {
            let (client, server) = tokio::try_join!(client, server)?;
            let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
            tokio::io::copy_bidirectional(&mut client, &mut server).await?;
            Ok::<_, Box<dyn std::error::Error>>(())
        };
        if let Err(error) = copied.await {
            debug!(%error, "Upgraded connection failed");
        }
        drop((held, sender));
    });
    Ok(response.map(|_| ResponseBody::empty()))
}
