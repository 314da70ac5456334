//! Which backends of http services agree to TCP timestamps: they are asked one by one, a few at a time, beside the control loop.

use super::{actor::Actor, counters};
use crate::outside::stamps::agrees;
use splitter_common::abi::{Reason, backend_state, mapped};
use splitter_datapath::reconcile::Reconciler;
use splitter_policy::model::Mode;
use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};
use tokio::{runtime::Handle, sync::mpsc, task::JoinSet};

/// Backends that are asked at once.
const MOST: usize = 128;
/// Answers are collected for so long: each portion of them is an apply.
const PORTION: Duration = Duration::from_millis(200);
/// Who did not agree, or could not be reached, is asked again after this long.
const AGAIN: Duration = Duration::from_secs(30);

pub type Answers = Vec<(SocketAddr, Option<bool>)>;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Known {
    Asked,
    Agrees,
    /// `None`: it could not be reached.
    Other(Option<bool>, Instant),
}

/// What is known, and who is being asked.
pub struct Stamps {
    /// `None`: nobody is asked.
    outside: Option<Handle>,
    known: HashMap<SocketAddr, Known>,
    sender: mpsc::UnboundedSender<Answers>,
    receiver: mpsc::UnboundedReceiver<Answers>,
    /// Promises that a backend did not keep, as the kernel last counted them.
    broken: Option<u64>,
}

impl Stamps {
    pub fn new(outside: Option<Handle>) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self { outside, known: HashMap::new(), sender, receiver, broken: None }
    }

    /// Waits for answers; never ends otherwise, since a sender is kept here.
    pub async fn answers(&mut self) -> Answers {
        match self.receiver.recv().await {
            Some(answers) => answers,
            None => std::future::pending().await,
        }
    }

    /// Asks those of `backends` that were never asked, or long ago. Forgets all others.
    fn ask(&mut self, backends: HashSet<SocketAddr>) {
        let Some(outside) = &self.outside else { return };
        self.known.retain(|backend, _| backends.contains(backend));
        let due = |backend: &SocketAddr| match self.known.get(backend) {
            None => true,
            Some(Known::Other(_, at)) => at.elapsed() >= AGAIN,
            Some(_) => false,
        };
        let asked: Vec<SocketAddr> = backends.into_iter().filter(due).collect();
        if asked.is_empty() {
            return;
        }
        self.known.extend(asked.iter().map(|backend| (*backend, Known::Asked)));
        outside.spawn(all(asked, self.sender.clone()));
    }

    fn note(&mut self, answers: Answers) {
        for (backend, answer) in answers {
            let known = if answer == Some(true) { Known::Agrees } else { Known::Other(answer, Instant::now()) };
            self.known.insert(backend, known);
        }
    }

    /// A promise was broken: nobody is believed until asked again.
    fn doubt(&mut self) {
        let long_ago = Instant::now().checked_sub(AGAIN).unwrap_or_else(Instant::now);
        self.known.values_mut().filter(|known| **known == Known::Agrees).for_each(|known| *known = Known::Other(Some(false), long_ago));
    }

    /// As [`Reconciler::set_stamps`] takes it.
    pub fn said(&self) -> Option<HashMap<SocketAddr, bool>> {
        self.outside.as_ref()?;
        let said = |known: &Known| match known {
            Known::Agrees => Some(true),
            Known::Other(answer, _) => *answer,
            Known::Asked => None,
        };
        Some(self.known.iter().filter_map(|(backend, known)| Some((*backend, said(known)?))).collect())
    }
}

/// Asks all, [`MOST`] at a time.
async fn all(backends: Vec<SocketAddr>, sender: mpsc::UnboundedSender<Answers>) {
    let (mut backends, mut tasks) = (backends.into_iter(), JoinSet::new());
    let (mut answers, mut sent) = (Answers::new(), Instant::now());
    loop {
        for backend in backends.by_ref().take(MOST - tasks.len()) {
            tasks.spawn(async move { (backend, agrees(backend).await) });
        }
        let Some(answer) = tasks.join_next().await else { break };
        answers.extend(answer);
        if sent.elapsed() >= PORTION {
            // The actor is gone when the agent ends.
            let _ = sender.send(std::mem::take(&mut answers));
            sent = Instant::now();
        }
    }
    let _ = sender.send(answers);
}

/// Backends of http services that may get connections.
fn backends(reconciler: &Reconciler) -> HashSet<SocketAddr> {
    let http = reconciler.services().filter(|planned| planned.model.mode == Mode::Http);
    let rows = http.flat_map(|planned| &planned.image.backends).map(|(_, row)| row);
    rows.filter(|row| row.state != backend_state::DOWN).map(|row| SocketAddr::new(ip(row.addr), u16::from_be_bytes(row.port))).collect()
}

fn ip(addr: [u8; 16]) -> IpAddr {
    match addr {
        [.., a, b, c, d] if mapped([a, b, c, d]) == addr => IpAddr::from([a, b, c, d]),
        _ => Ipv6Addr::from(addr).into(),
    }
}

impl Actor {
    /// After each apply, and now and then.
    pub(super) fn ask_for_stamps(&mut self) {
        if self.stamps.outside.is_some() {
            self.stamps.ask(backends(&self.reconciler));
        }
    }

    pub(super) fn note_stamps(&mut self, answers: Answers) {
        self.stamps.note(answers);
        self.bring_stamps();
    }

    /// A backend that was restarted with other settings shows itself by the kernel's count.
    pub(super) fn doubt_stamps(&mut self) {
        let Some(datapath) = &self.datapath else { return };
        match counters::reason(&datapath.tables, Reason::Unstamped) {
            Ok(broken) => {
                if self.stamps.broken.replace(broken).is_some_and(|before| before != broken) {
                    self.stamps.doubt();
                    self.bring_stamps();
                }
            }
            Err(error) => tracing::error!(%error, "timestamps"),
        }
    }

    fn bring_stamps(&mut self) {
        // As with the MTU: what was never applied, or failed, is applied with it anyway.
        if self.reconciler.set_stamps(self.stamps.said()) && !self.reconciler.is_unsure() {
            self.apply_soon(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[tokio::test]
    async fn who_was_asked_is_not_asked_again_at_once() {
        let mut stamps = Stamps::new(Some(Handle::current()));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (here, gone) = (listener.local_addr().unwrap(), {
            let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            other.local_addr().unwrap()
        });
        stamps.ask(HashSet::from([here, gone]));
        let answers = stamps.answers().await;
        assert_eq!(answers.len(), 2);
        stamps.note(answers);
        let ours = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_timestamps").unwrap().trim() != "0";
        assert_eq!(stamps.said(), Some(HashMap::from([(here, ours)])));
        stamps.ask(HashSet::from([here, gone]));
        assert!(stamps.known.values().all(|known| *known != Known::Asked));
        // Who is not in the policy any more is forgotten.
        stamps.ask(HashSet::from([here]));
        assert!(!stamps.known.contains_key(&gone));
    }

    #[tokio::test]
    async fn after_a_broken_promise_everybody_is_asked_again() {
        let mut stamps = Stamps::new(Some(Handle::current()));
        stamps.note(vec![(address(1), Some(true)), (address(2), None)]);
        assert_eq!(stamps.said(), Some(HashMap::from([(address(1), true)])));
        stamps.doubt();
        assert_eq!(stamps.said(), Some(HashMap::from([(address(1), false)])));
        stamps.ask(HashSet::from([address(1), address(2)]));
        assert_eq!(stamps.known[&address(1)], Known::Asked);
        assert!(matches!(stamps.known[&address(2)], Known::Other(None, _)));
    }

    #[test]
    fn nobody_is_asked_when_it_is_switched_off() {
        let mut stamps = Stamps::new(None);
        stamps.ask(HashSet::from([address(1)]));
        assert_eq!((stamps.known.len(), stamps.said()), (0, None));
    }
}
