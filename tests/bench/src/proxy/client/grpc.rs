//! gRPC calls in a closed loop.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use tokio::{net::TcpStream, task::JoinSet};

use super::{super::app::message, Pulled};

/// An HTTP/2 connection without TLS, driven by a task of its own.
pub(super) async fn connect(address: SocketAddr) -> anyhow::Result<SendRequest<Bytes>> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    let (sender, connection) = h2::client::handshake(tcp).await?;
    tokio::spawn(async move {
        // Its calls fail with it.
        let _ = connection.await;
    });
    Ok(sender)
}

/// One call, to its trailers.
pub(super) async fn call(sender: SendRequest<Bytes>, address: SocketAddr) -> anyhow::Result<()> {
    let mut sender = sender.ready().await?;
    let request = Request::post(format!("http://{address}/bench.Echo/Say"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let (response, mut body) = sender.send_request(request, false)?;
    body.send_data(message(), true)?;
    let (head, mut body) = response.await?.into_parts();
    ensure!(head.status == 200, "the answer was {}", head.status);
    while let Some(data) = body.data().await {
        body.flow_control().release_capacity(data?.len())?;
    }
    let trailers = body.trailers().await?.context("there are no trailers")?;
    ensure!(
        trailers.get("grpc-status").is_some_and(|status| status == "0"),
        "grpc-status is not 0"
    );
    Ok(())
}

pub(super) async fn load(
    address: SocketAddr,
    seconds: u64,
    connections: usize,
    streams: usize,
) -> anyhow::Result<Pulled> {
    let (began, lasts) = (Instant::now(), Duration::from_secs(seconds));
    let mut calling = JoinSet::new();
    for _ in 0..connections {
        let sender = connect(address).await?;
        for _ in 0..streams {
            let sender = sender.clone();
            calling.spawn(async move {
                let mut count = 0;
                while began.elapsed() < lasts {
                    call(sender.clone(), address).await?;
                    count += 1;
                }
                anyhow::Ok(count)
            });
        }
    }
    let mut count = 0;
    while let Some(called) = calling.join_next().await {
        count += called??;
    }
    Ok(Pulled {
        count,
        seconds: began.elapsed().as_secs_f64(),
    })
}
