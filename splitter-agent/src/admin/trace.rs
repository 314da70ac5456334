//! `GET /v1/trace`: decisions live, one JSON object a line, until the reader goes.

use super::{
    Api,
    http::{Answer, Work},
};
use crate::control::trace::Reader;
use hyper::body::{Body, Bytes, Frame};
use splitter_api::{TraceLost, TraceRequest};
use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, timeout},
};

/// Says something, so that a reader that is gone is noticed.
const BEAT: Duration = Duration::from_secs(1);
/// A reader that takes nothing for so long is dropped.
const STALLED: Duration = Duration::from_secs(30);
/// Pieces on their way to a connection; the reader's own queue is longer.
const AHEAD: usize = 16;
/// Bytes of a piece.
const PIECE: usize = 16 << 10;

/// A body that goes on.
#[derive(Debug)]
pub struct Stream {
    pieces: mpsc::Receiver<Bytes>,
    /// False when nothing more comes, or nobody takes it.
    alive: Arc<AtomicBool>,
    /// Ends with it.
    work: Option<Work>,
}

impl Stream {
    pub fn alive(&self) -> Arc<AtomicBool> {
        self.alive.clone()
    }

    pub fn keep(&mut self, work: Work) {
        self.work = Some(work);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.alive.store(false, Relaxed);
    }
}

impl Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.pieces.poll_recv(context).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

/// Answers with the lines of a reader.
pub async fn answer(request: TraceRequest, api: &impl Api) -> Answer {
    let reader = match api.trace(request).await {
        Ok(reader) => reader,
        Err(error) => return super::api::finish::<()>(Err(error)),
    };
    let (sender, pieces) = mpsc::channel(AHEAD);
    let alive = Arc::new(AtomicBool::new(true));
    // Ends with the connection, or with the agent.
    tokio::spawn(feed(reader, sender, alive.clone()));
    super::http::streamed("application/x-ndjson", Stream { pieces, alive, work: None })
}

async fn feed(mut reader: Reader, sender: mpsc::Sender<Bytes>, alive: Arc<AtomicBool>) {
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut lost = TraceLost::default();
    loop {
        let mut piece = Vec::new();
        tokio::select! {
            event = reader.next() => match event {
                Some(event) => write(&mut piece, &event),
                None => break,
            },
            _ = beat.tick() => write(&mut piece, &reader.lost()),
            () = sender.closed() => break,
        }
        // What is there already goes along.
        while piece.len() < PIECE {
            match timeout(Duration::ZERO, reader.next()).await {
                Ok(Some(event)) => write(&mut piece, &event),
                _ => break,
            }
        }
        let now = reader.lost();
        if now != lost {
            write(&mut piece, &now);
            lost = now;
        }
        match timeout(STALLED, sender.send(piece.into())).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => break,
            Err(_) => {
                tracing::warn!(seconds = STALLED.as_secs(), "a reader of decisions takes nothing: dropped");
                break;
            }
        }
    }
    alive.store(false, Relaxed);
}

fn write(piece: &mut Vec<u8>, line: &impl serde::Serialize) {
    // Numbers and strings alone.
    if serde_json::to_writer(&mut *piece, line).is_ok() {
        piece.push(b'\n');
    }
}
