//! Requests that turn their connection into one of another protocol: `upgrade` (WebSocket and others) and CONNECT.
//! They travel as HTTP/1, each on a connection of its own, and become bytes when the server agrees.

use http::{Method, Request, Response, StatusCode};
use hyper::{
    client::conn::http1::SendRequest,
    upgrade::{Parts, Upgraded},
};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt as _;
use tracing::debug;

use super::{ProxyError, RequestBody, ResponseBody, body::ClientBody, incoming::Incoming};
use crate::io::{Io, Prefixed, copy};

type Error = Box<dyn std::error::Error>;

/// Sends the request; if the server agrees, copies both ways in a task of its own, which holds on to `held`. The bytes end
/// when `forbidden` does.
pub(crate) async fn send(
    mut sender: SendRequest<RequestBody>,
    mut request: Request<Incoming>,
    held: impl Sized + 'static,
    forbidden: impl Future<Output = ()> + 'static,
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
            copy_bytes(client, server, forbidden).await
        };
        if let Err(error) = copied.await {
            debug!(%error, "Upgraded connection failed");
        }
        drop((held, sender));
    });
    Ok(response.map(|_| ResponseBody::empty()))
}

async fn copy_bytes(
    client: Upgraded,
    server: Upgraded,
    forbidden: impl Future<Output = ()>,
) -> Result<(), Error> {
    // Without hyper between, bytes are copied as those of any connection are.
    let client = client.downcast::<TokioIo<Prefixed<Io>>>();
    let server = server.downcast::<TokioIo<Io>>();
    let (client, server) = match (client, server) {
        (Ok(client), Ok(server)) => (client, server),
        // Both came by HTTP/1, so they are what they were made from.
        _ => return Err("an upgraded connection is no connection of ours".into()),
    };
    let Parts { io, read_buf, .. } = client;
    let (read_ahead, mut client) = io.into_inner().into_parts();
    let from_client = [&read_buf[..], &read_ahead].concat();
    let Parts { io, read_buf, .. } = server;
    let mut server = io.into_inner();
    client.reading_freely();
    let copying = async {
        // What came right behind the heads, and was counted with them.
        tokio::try_join!(
            write_all(&mut server, &from_client),
            write_all(&mut client, &read_buf)
        )?;
        copy(&mut client, &mut server).await
    };
    let ended = tokio::select! {
        copied = copying => Some(copied),
        () = forbidden => None,
    };
    match ended {
        Some(copied) => Ok(copied?),
        None => {
            client.reset_on_close();
            Err("the policy no longer allows the connection".into())
        }
    }
}

async fn write_all(io: &mut Io, bytes: &[u8]) -> std::io::Result<()> {
    if !bytes.is_empty() {
        io.write_all(bytes).await?;
        io.flush().await?;
    }
    Ok(())
}
