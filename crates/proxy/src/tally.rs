//! What is counted of requests, by version: the same figures as the kernel's, for whoever adds them to those.

use splitter_common::{
    abi::{HistogramKey, Measure, Outcomes, VersionCounters},
    histogram::{SUBBUCKETS, locate},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// What was counted of one version since it was taken last.
#[derive(Debug, Default)]
pub struct Tally {
    /// Packets, bytes and pending trials are never counted here.
    pub counters: VersionCounters,
    /// Samples by octave and sub-bucket.
    pub samples: HashMap<HistogramKey, [u32; SUBBUCKETS as usize]>,
}

impl Tally {
    fn outcomes(&mut self, ruled: bool) -> &mut Outcomes {
        if ruled { &mut self.counters.ruled } else { &mut self.counters.drawn }
    }
}

/// One version's [`Tally`], shared by all who count.
#[derive(Debug)]
pub struct Account {
    version: u32,
    tally: Mutex<Tally>,
}

impl Account {
    pub(crate) fn count(&self, add: impl FnOnce(&mut VersionCounters)) {
        add(&mut self.lock().counters);
    }

    /// A duration that was measured.
    pub(crate) fn sample(&self, measure: Measure, ruled: bool, took: Duration) {
        let (octave, sub) = locate(took.as_nanos().try_into().unwrap_or(u64::MAX));
        let mut tally = self.lock();
        let counts = tally.samples.entry(HistogramKey::new(self.version, measure, ruled, octave)).or_insert([0; SUBBUCKETS as usize]);
        counts[sub as usize] = counts[sub as usize].saturating_add(1);
    }

    /// Whole whatever happened to who held it: counters are only added to.
    fn lock(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All accounts, by version id. Those of versions that are in the policy no more stay as long as somebody counts.
#[derive(Debug, Default)]
pub struct Accounts(Mutex<HashMap<u32, Arc<Account>>>);

impl Accounts {
    /// The account of a version.
    pub fn of(&self, version: u32) -> Arc<Account> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(version).or_insert_with(|| Arc::new(Account { version, tally: Mutex::default() })).clone()
    }

    /// What was counted since this was asked last, by version id; versions of which nothing was counted are left out.
    pub fn take(&self) -> Vec<(u32, Tally)> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = Vec::new();
        all.retain(|version, account| {
            let used = Arc::strong_count(account) > 1;
            let tally = std::mem::take(&mut *account.lock());
            if tally.counters != VersionCounters::default() || !tally.samples.is_empty() {
                found.push((*version, tally));
            }
            used
        });
        found
    }
}

/// How the trials of a version are judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// After which time without an answer a trial is overdue, of those that the weights drew and of those that a rule sent; `None`: never.
    pub unanswered: [Option<Duration>; 2],
    /// Statuses that are failures, bit 0 is 100; `None`: those of class 5.
    pub failing: Option<[u64; splitter_common::abi::CODE_WORDS]>,
}

impl Terms {
    fn fails(&self, status: u16) -> bool {
        let Some(words) = &self.failing else { return status / 100 == 5 };
        let bit = usize::from(status.saturating_sub(100));
        words.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 != 0)
    }
}

/// What became of a trial that got no answer: see [`Outcomes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unanswered {
    Refused,
    Unopened,
    Abandoned,
    Closed,
    Unavailable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Pending,
    Answered,
    Ended,
}

/// One request, a trial of the version that was chosen for it. Ends in one outcome; dropped before an answer, its client has gone.
#[derive(Debug)]
pub struct Trial {
    account: Arc<Account>,
    ruled: bool,
    terms: Terms,
    begun: Instant,
    state: State,
}

impl Trial {
    pub(crate) fn begin(account: Arc<Account>, terms: Terms, ruled: bool) -> Self {
        let mut tally = account.lock();
        tally.counters.requests += 1;
        tally.outcomes(ruled).trials += 1;
        drop(tally);
        Self { account, ruled, terms, begun: Instant::now(), state: State::Pending }
    }

    pub(crate) fn account(&self) -> &Account {
        &self.account
    }

    pub(crate) fn is_ruled(&self) -> bool {
        self.ruled
    }

    /// When it is overdue, if ever.
    pub(crate) fn due(&self) -> Option<Instant> {
        Some(self.begun + self.terms.unanswered[usize::from(self.ruled)]?)
    }

    /// Its client waits for too long: that is its outcome, whatever comes.
    pub(crate) fn overdue(&mut self) {
        if self.state == State::Pending {
            self.account.lock().outcomes(self.ruled).overdue += 1;
            self.state = State::Ended;
        }
    }

    /// The backend's answer has begun.
    pub(crate) fn answered(&mut self, status: u16) {
        let class = match status / 100 {
            class @ 1..=5 => usize::from(class),
            _ => 0,
        };
        let pending = self.state == State::Pending;
        let mut tally = self.account.lock();
        tally.counters.status[class] += 1;
        if pending {
            let failed = u64::from(self.terms.fails(status));
            let outcomes = tally.outcomes(self.ruled);
            outcomes.answered += 1;
            outcomes.status[class] += 1;
            outcomes.failed += failed;
        }
        drop(tally);
        if pending {
            self.state = State::Answered;
            self.account.sample(Measure::FirstByte, self.ruled, self.begun.elapsed());
        }
    }

    /// The backend ended in the middle of its answer.
    pub(crate) fn cut(&mut self) {
        if self.state == State::Answered {
            self.account.lock().outcomes(self.ruled).cut += 1;
            self.state = State::Ended;
        }
    }

    /// There will be no answer.
    pub(crate) fn unanswered(&mut self, what: Unanswered) {
        if self.state != State::Pending {
            return;
        }
        self.state = State::Ended;
        let mut tally = self.account.lock();
        let outcomes = tally.outcomes(self.ruled);
        *match what {
            Unanswered::Refused => &mut outcomes.refused,
            Unanswered::Unopened => &mut outcomes.unopened,
            Unanswered::Abandoned => &mut outcomes.abandoned,
            Unanswered::Closed => &mut outcomes.closed,
            Unanswered::Unavailable => &mut outcomes.unavailable,
        } += 1;
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        self.unanswered(Unanswered::Abandoned);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(accounts: &Accounts) -> Outcomes {
        accounts.take().pop().map(|(_, tally)| tally.counters.drawn).unwrap_or_default()
    }

    #[test]
    fn a_trial_ends_in_one_outcome() {
        let accounts = Accounts::default();
        let begin = || Trial::begin(accounts.of(7), Terms::default(), false);
        drop(begin());
        assert_eq!(drawn(&accounts), Outcomes { trials: 1, abandoned: 1, ..Outcomes::default() });
        let mut late = begin();
        late.overdue();
        late.answered(200);
        late.cut();
        drop(late);
        assert_eq!(drawn(&accounts), Outcomes { trials: 1, overdue: 1, ..Outcomes::default() });
        let mut failed = begin();
        failed.answered(503);
        failed.unanswered(Unanswered::Closed);
        failed.cut();
        failed.cut();
        drop(failed);
        let expected = Outcomes { trials: 1, answered: 1, failed: 1, cut: 1, status: [0, 0, 0, 0, 0, 1], ..Outcomes::default() };
        assert_eq!(drawn(&accounts), expected);
        assert!(accounts.take().is_empty());
    }

    #[test]
    fn the_service_says_which_statuses_fail() {
        let mut words = [0; splitter_common::abi::CODE_WORDS];
        words[(429 - 100) / 64] |= 1 << ((429 - 100) % 64);
        let terms = Terms { failing: Some(words), ..Terms::default() };
        assert!(terms.fails(429) && !terms.fails(500) && !terms.fails(99));
        assert!(Terms::default().fails(500) && !Terms::default().fails(429));
    }
}
