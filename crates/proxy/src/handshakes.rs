//! Handshakes under way: when a thread has as many as it may, the oldest makes room. An honest one takes two round trips, and who only opens
//! connections keeps nobody out.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};
use tokio::sync::oneshot;

/// Those of one thread, by age.
pub struct Handshakes {
    most: usize,
    next: Cell<u64>,
    waiting: RefCell<BTreeMap<u64, oneshot::Sender<()>>>,
}

/// One of them; it is over when this is dropped.
pub struct Turn {
    all: Rc<Handshakes>,
    number: u64,
    displaced: oneshot::Receiver<()>,
}

impl Handshakes {
    pub fn new(most: usize) -> Self {
        Self { most, next: Cell::new(0), waiting: RefCell::default() }
    }

    /// One more; the oldest ends when it is one too many.
    pub fn begin(self: &Rc<Self>) -> Turn {
        let number = self.next.replace(self.next.get() + 1);
        let (displace, displaced) = oneshot::channel();
        let mut waiting = self.waiting.borrow_mut();
        waiting.insert(number, displace);
        if waiting.len() > self.most {
            waiting.pop_first();
        }
        Turn { all: self.clone(), number, displaced }
    }
}

impl Turn {
    /// Returns when younger ones need the room.
    pub async fn displaced(&mut self) {
        // Nothing is ever sent: the sender goes.
        let _ = (&mut self.displaced).await;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.all.waiting.borrow_mut().remove(&self.number);
    }
}
