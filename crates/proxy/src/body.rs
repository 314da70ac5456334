//! Answers' bodies on their way to clients. What was begun for a request ends with the last of its answer.

use crate::{
    pool::{Key, Pool, Sender},
    tally::Trial,
};
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::{
    error::Error,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

type Cause = Box<dyn Error + Send + Sync>;

/// An answer's body on its way to the client.
pub struct Download {
    body: Incoming,
    /// Goes back to the pool when the answer has ended.
    lease: Option<(Sender, Key, Rc<Pool>)>,
    trial: Trial,
}

impl Download {
    pub fn new(body: Incoming, sender: Sender, key: Key, pool: Rc<Pool>, trial: Trial) -> Self {
        Self { body, lease: Some((sender, key, pool)), trial }
    }

    fn ended(&mut self) {
        if let Some((sender, key, pool)) = self.lease.take() {
            pool.give(key, sender);
        }
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = Cause;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cause>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            None => self.ended(),
            Some(Ok(_)) => {}
            Some(Err(_)) => {
                self.trial.cut();
                self.lease = None;
            }
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // A body whose length is known is not asked for its end.
        if self.body.is_end_stream() {
            self.ended();
        }
    }
}
