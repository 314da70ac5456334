//! Requests' bodies on their way to backends.

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::{
    error::Error,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep};

/// A client that sends nothing of a body for so long is not waited for.
const STALLED: Duration = Duration::from_secs(60);

type Cause = Box<dyn Error + Send + Sync>;

/// A request's body on its way to the backend.
pub struct Upload {
    body: Option<Incoming>,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Upload {
    pub fn new(body: Incoming) -> Self {
        Self { body: Some(body), stalled: None }
    }

    /// Of a request that has none.
    pub fn none() -> Self {
        Self { body: None, stalled: None }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Cause;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cause>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) {
            if let Some(stalled) = &mut self.stalled {
                stalled.as_mut().reset(Instant::now() + STALLED);
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(STALLED)));
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::TimedOut).into()))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
