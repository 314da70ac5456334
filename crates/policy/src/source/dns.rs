//! Addresses of names by DNS: asks when an answer runs out, and keeps what was known when there is none.
//!
//! Owns when to ask, what an answer changes, and the only use of hickory. An answer counts for its TTL, between `FLOOR` and `CEILING`: names of
//! containers change faster than their TTLs say. An address that leaves drains; a failure, or an answer without addresses, takes nothing away.

mod system;
mod table;

use super::{
    EndpointSource,
    resolve::{Found, Query},
};
use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};
pub use system::System;
use table::Table;
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

/// The shortest and the longest time for which an answer counts.
const FLOOR: Duration = Duration::from_secs(5);
const CEILING: Duration = Duration::from_secs(30);
/// A lookup that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Lookups at the same time.
const AT_ONCE: usize = 32;
/// Addresses of one name that count: the first ones by number.
const MOST: usize = 256;

/// What a name stands for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// At least one; those that no host can have are left out.
    pub addresses: BTreeSet<SocketAddr>,
    pub ttl: Duration,
}

/// Who answers.
pub trait Resolver: Send + Sync + 'static {
    /// # Errors
    /// Why there is no address, for people.
    fn resolve(&self, query: &Query) -> impl Future<Output = Result<Answer, String>> + Send;
}

/// See the module.
#[derive(Debug)]
pub struct Dns<R> {
    resolver: Arc<R>,
    table: Table,
    asked: JoinSet<(Query, Result<Answer, String>)>,
    again: Arc<Notify>,
}

impl<R: Resolver> Dns<R> {
    /// `remembered`: what was found before. `again` has everything asked at once.
    pub fn new(resolver: R, remembered: Found, again: Arc<Notify>) -> Self {
        Self { resolver: Arc::new(resolver), table: Table::new(remembered), asked: JoinSet::new(), again }
    }

    fn ask(&mut self) {
        let room = AT_ONCE.saturating_sub(self.asked.len());
        for query in self.table.take_due(Instant::now(), room) {
            let resolver = self.resolver.clone();
            self.asked.spawn(async move {
                let answer = timeout(PATIENCE, resolver.resolve(&query)).await;
                (query, answer.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs()))))
            });
        }
    }
}

impl<R: Resolver> EndpointSource for Dns<R> {
    fn want(&mut self, queries: &BTreeSet<Query>) {
        self.table.want(queries, Instant::now());
        self.ask();
    }

    fn found(&self) -> Found {
        self.table.found()
    }

    /// May be dropped and called again at any time.
    async fn changed(&mut self) {
        loop {
            self.ask();
            // Without room, what is due waits for an answer to another question.
            let next = self.table.next(self.asked.len() < AT_ONCE);
            let changed = tokio::select! {
                Some(ended) = self.asked.join_next() => match ended {
                    Ok((query, answer)) => self.table.answered(&query, answer, Instant::now()),
                    // Only the end of the runtime cancels a lookup.
                    Err(_) => return std::future::pending().await,
                },
                () = sleep_until(next.unwrap_or_else(far)), if next.is_some() => self.table.expire(Instant::now()),
                () = self.again.notified() => {
                    self.table.ask_all(Instant::now());
                    false
                }
            };
            if changed {
                return;
            }
        }
    }
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(86_400)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BackendState, Lookup};
    use std::{collections::HashMap, sync::Mutex};

    /// A resolver of what a test says.
    #[derive(Clone, Default)]
    struct Said(Arc<Mutex<HashMap<String, Result<Answer, String>>>>, Arc<Mutex<Vec<(String, Instant)>>>);

    impl Said {
        fn says(&self, name: &str, addresses: &[&str], ttl: u64) {
            let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
            self.0.lock().unwrap().insert(name.into(), Ok(Answer { addresses, ttl: Duration::from_secs(ttl) }));
        }
        fn fails(&self, name: &str) {
            self.0.lock().unwrap().insert(name.into(), Err("no such name".into()));
        }
        /// Seconds between the questions so far.
        fn gaps(&self) -> Vec<u64> {
            let asked = self.1.lock().unwrap();
            asked.windows(2).map(|pair| (pair[1].1 - pair[0].1).as_secs()).collect()
        }
    }

    impl Resolver for Said {
        async fn resolve(&self, query: &Query) -> Result<Answer, String> {
            self.1.lock().unwrap().push((query.lookup.name.clone(), Instant::now()));
            let answer = self.0.lock().unwrap().get(&query.lookup.name).cloned();
            match answer {
                Some(answer) => answer,
                None => std::future::pending().await,
            }
        }
    }

    fn query(name: &str) -> Query {
        Query { lookup: Lookup { name: name.into(), port: Some(80), drain: Duration::from_secs(60) }, ipv6: false }
    }

    fn dns(said: &Said, names: &[&str]) -> Dns<Said> {
        let mut dns = Dns::new(said.clone(), Found::new(), Arc::default());
        dns.want(&names.iter().map(|name| query(name)).collect());
        dns
    }

    fn shown(dns: &Dns<Said>, name: &str) -> (Vec<String>, Option<String>) {
        let endpoints = dns.found().remove(&query(name)).unwrap();
        let show = |(address, state): (&SocketAddr, &BackendState)| match state {
            BackendState::Ready => address.to_string(),
            _ => format!("{address} leaves"),
        };
        (endpoints.backends.iter().map(show).collect(), endpoints.failure)
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_leaves_drains_and_one_that_comes_back_stays() {
        let said = Said::default();
        said.says("a", &["10.0.0.1:80", "10.0.0.2:80"], 10);
        let mut dns = dns(&said, &["a"]);
        dns.changed().await;
        assert_eq!(shown(&dns, "a").0, ["10.0.0.1:80", "10.0.0.2:80"]);
        said.says("a", &["10.0.0.2:80", "10.0.0.3:80"], 10);
        dns.changed().await;
        assert_eq!(shown(&dns, "a").0, ["10.0.0.1:80 leaves", "10.0.0.2:80", "10.0.0.3:80"]);
        said.says("a", &["10.0.0.1:80"], 10);
        dns.changed().await;
        assert_eq!(shown(&dns, "a").0, ["10.0.0.1:80", "10.0.0.2:80 leaves", "10.0.0.3:80 leaves"]);
        let begin = Instant::now();
        dns.changed().await;
        assert_eq!(shown(&dns, "a").0, ["10.0.0.1:80"]);
        assert_eq!(begin.elapsed().as_secs(), 60);
        assert_eq!(said.gaps(), [10; 7]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_takes_nothing_away_and_is_tried_again_soon() {
        let said = Said::default();
        said.says("a", &["10.0.0.1:80"], 0);
        let mut dns = dns(&said, &["a"]);
        dns.changed().await;
        said.fails("a");
        dns.changed().await;
        assert_eq!(shown(&dns, "a"), (vec!["10.0.0.1:80".into()], Some("no such name".into())));
        // The same failure again is no news.
        assert!(timeout(Duration::from_secs(120), dns.changed()).await.is_err());
        said.says("a", &["10.0.0.1:80"], 3_600);
        dns.changed().await;
        assert_eq!(shown(&dns, "a"), (vec!["10.0.0.1:80".into()], None));
        assert!(timeout(Duration::from_secs(70), dns.changed()).await.is_err());
        assert_eq!(said.gaps()[..6], [5, 1, 2, 4, 8, 16], "the floor, then the steps after a failure");
        assert_eq!(said.gaps()[said.gaps().len() - 2..], [30, 30], "the ceiling");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_says_nothing_holds_up_only_its_own_name() {
        let said = Said::default();
        said.says("a", &["10.0.0.1:80"], 30);
        let mut dns = dns(&said, &["a", "silent"]);
        let pending = |dns: &Dns<Said>, name| dns.found()[&query(name)].pending;
        dns.changed().await;
        assert!(!pending(&dns, "a") && pending(&dns, "silent"));
        dns.changed().await;
        assert!(!pending(&dns, "silent"));
        assert_eq!(shown(&dns, "silent"), (vec![], Some("no answer within 10 s".into())));
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_wants_any_more_is_forgotten_and_a_reload_asks_at_once() {
        let said = Said::default();
        said.says("a", &["10.0.0.1:80"], 30);
        said.says("b", &["10.0.0.2:80"], 30);
        let again = Arc::new(Notify::new());
        let mut dns = Dns::new(said.clone(), Found::new(), again.clone());
        dns.want(&BTreeSet::from([query("a"), query("b")]));
        dns.changed().await;
        dns.changed().await;
        dns.want(&BTreeSet::from([query("b")]));
        assert_eq!(dns.found().len(), 1);
        said.says("b", &["10.0.0.3:80"], 30);
        again.notify_one();
        let begin = Instant::now();
        dns.changed().await;
        assert_eq!(begin.elapsed(), Duration::ZERO);
        assert_eq!(shown(&dns, "b").0, ["10.0.0.2:80 leaves", "10.0.0.3:80"]);
    }
}
