//! What a sidecar pair cannot go below: a relay that does nothing but mutual TLS, and the bounds of its parts. Built with
//! the same profile as the proxy; `cargo xtask bench proxy` compares the proxy with it.
//!
//! - `floor relay client|server LISTEN CONNECT DIR`: one thread, bytes from LISTEN to CONNECT, TLS on one side of it.
//! - `floor handshakes SECONDS DIR`: mutual handshakes per CPU second, both sides, in memory.
//! - `floor cipher SECONDS`: bytes per CPU second sealed, opened and copied four times, as through a pair.
//! - `floor sockets SECONDS`: the same with the copies made by sockets, in and out of each of the two.

use std::{
    hint::black_box,
    io::{Read as _, Write as _},
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use heddle_tls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    server::WebPkiClientVerifier,
    version::TLS13,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const SERVER: &str = "web.bench.serviceaccount.identity.linkerd.cluster.local";
const COPY_BYTES: usize = 64 * 1024;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["relay", side, listen, connect, dir] => {
            let dir = Path::new(dir);
            let side = match side {
                "client" => Side::Client(client_config(dir)?.into()),
                "server" => Side::Server(TlsAcceptor::from(server_config(dir)?)),
                _ => bail!("expected `client` or `server`, not {side}"),
            };
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?
                .block_on(relay(side, listen.parse()?, connect.parse()?))
        }
        ["handshakes", seconds, dir] => handshakes(seconds.parse()?, Path::new(dir)),
        ["cipher", seconds] => cipher(seconds.parse()?, &mut Memory(vec![1; 4 << 20], 0)),
        ["sockets", seconds] => cipher(seconds.parse()?, &mut Sockets::new()?),
        _ => bail!("expected `relay`, `handshakes`, `cipher` or `sockets` and their arguments"),
    }
}

#[derive(Clone)]
enum Side {
    Client(TlsConnector),
    Server(TlsAcceptor),
}

async fn relay(side: Side, listen: SocketAddr, connect: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (tcp, _) = listener.accept().await?;
        let side = side.clone();
        tokio::spawn(async move {
            // A connection that fails is the other side's to notice.
            let _ = carry(side, tcp, connect).await;
        });
    }
}

async fn carry(side: Side, mut tcp: TcpStream, connect: SocketAddr) -> anyhow::Result<()> {
    let mut out = TcpStream::connect(connect).await?;
    tcp.set_nodelay(true)?;
    out.set_nodelay(true)?;
    match side {
        Side::Client(connector) => {
            let mut out = connector.connect(ServerName::try_from(SERVER)?, out).await?;
            tokio::io::copy_bidirectional_with_sizes(&mut tcp, &mut out, COPY_BYTES, COPY_BYTES).await?;
        }
        Side::Server(acceptor) => {
            let mut tls = acceptor.accept(tcp).await?;
            tokio::io::copy_bidirectional_with_sizes(&mut tls, &mut out, COPY_BYTES, COPY_BYTES).await?;
        }
    }
    Ok(())
}

fn roots(dir: &Path) -> anyhow::Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join("ca.pem"))?)?;
    Ok(Arc::new(roots))
}

type Credentials = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn credentials(file: &Path) -> anyhow::Result<Credentials> {
    let chain = CertificateDer::pem_file_iter(file)?.collect::<Result<_, _>>()?;
    Ok((chain, PrivateKeyDer::from_pem_file(file)?))
}

fn client_config(dir: &Path) -> anyhow::Result<Arc<ClientConfig>> {
    let (chain, key) = credentials(&dir.join("client.pem"))?;
    let mut config = ClientConfig::builder_with_provider(heddle_tls::provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots(dir)?)
        .with_client_auth_cert(chain, key)?;
    config.resumption = heddle_tls::rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

fn server_config(dir: &Path) -> anyhow::Result<Arc<ServerConfig>> {
    let (chain, key) = credentials(&dir.join("server.pem"))?;
    let provider = heddle_tls::provider();
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(dir)?, provider.clone()).build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn handshakes(seconds: f64, dir: &Path) -> anyhow::Result<()> {
    let (client, server) = (client_config(dir)?, server_config(dir)?);
    let (began, cpu, mut count) = (Instant::now(), cpu_seconds()?, 0_u64);
    while began.elapsed() < Duration::from_secs_f64(seconds) {
        let mut client = ClientConnection::new(client.clone(), ServerName::try_from(SERVER)?)?;
        let mut server = ServerConnection::new(server.clone())?;
        let mut wire = Vec::new();
        while client.is_handshaking() || server.is_handshaking() {
            wire.clear();
            while client.wants_write() {
                client.write_tls(&mut wire)?;
            }
            let mut unread = wire.as_slice();
            while !unread.is_empty() {
                server.read_tls(&mut unread)?;
                server.process_new_packets()?;
            }
            wire.clear();
            while server.wants_write() {
                server.write_tls(&mut wire)?;
            }
            let mut unread = wire.as_slice();
            while !unread.is_empty() {
                client.read_tls(&mut unread)?;
                client.process_new_packets()?;
            }
        }
        ensure!(
            server.peer_certificates().is_some(),
            "the client has no certificate"
        );
        count += 1;
    }
    println!("{}", count as f64 / (cpu_seconds()? - cpu));
    Ok(())
}

const RECORD: usize = 16 * 1024;
const TAG: usize = 16;

/// What bytes come from and go to.
trait Wire {
    /// Into the process and out of it again.
    fn pass(&mut self, bytes: &mut [u8]) -> anyhow::Result<()>;
}

/// More than the nearest caches hold, as sockets' buffers are; and where in it the next bytes are.
struct Memory(Vec<u8>, usize);

impl Wire for Memory {
    fn pass(&mut self, bytes: &mut [u8]) -> anyhow::Result<()> {
        let Self(memory, at) = self;
        let record = &mut memory[*at..*at + bytes.len()];
        bytes.copy_from_slice(record);
        record.copy_from_slice(black_box(bytes));
        *at = (*at + 2 * RECORD) % (memory.len() - 8 * RECORD);
        Ok(())
    }
}

struct Sockets(std::net::TcpStream, std::net::TcpStream);

impl Sockets {
    fn new() -> anyhow::Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let one = std::net::TcpStream::connect(listener.local_addr()?)?;
        one.set_nodelay(true)?;
        Ok(Self(one, listener.accept()?.0))
    }
}

impl Wire for Sockets {
    fn pass(&mut self, bytes: &mut [u8]) -> anyhow::Result<()> {
        self.0.write_all(bytes)?;
        self.1.read_exact(bytes)?;
        Ok(())
    }
}

fn cipher(seconds: f64, wire: &mut impl Wire) -> anyhow::Result<()> {
    let key = UnboundKey::new(&AES_128_GCM, &[7; 16]).map_err(|_| anyhow::anyhow!("not a key"))?;
    let key = LessSafeKey::new(key);
    let mut bytes = vec![0_u8; 4 * (RECORD + TAG)];
    let (began, cpu, mut count) = (Instant::now(), cpu_seconds()?, 0_u64);
    while began.elapsed() < Duration::from_secs_f64(seconds) {
        for _ in 0..16 {
            wire.pass(&mut bytes)?;
            for record in bytes.chunks_exact_mut(RECORD + TAG) {
                let (text, room) = record.split_at_mut(RECORD);
                let nonce = || Nonce::assume_unique_for_key([0; 12]);
                let failed = |_| anyhow::anyhow!("the cipher failed");
                let tag = key
                    .seal_in_place_separate_tag(nonce(), Aad::empty(), text)
                    .map_err(failed)?;
                room.copy_from_slice(tag.as_ref());
                key.open_in_place(nonce(), Aad::empty(), record).map_err(failed)?;
            }
            wire.pass(&mut bytes)?;
            count += bytes.len() as u64;
        }
    }
    println!("{}", count as f64 / (cpu_seconds()? - cpu));
    Ok(())
}

/// Of this program's only thread.
fn cpu_seconds() -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/self/schedstat")?;
    let nanos: f64 = text.split(' ').next().context("an empty schedstat")?.parse()?;
    Ok(nanos / 1e9)
}
