//! Brings the kernel's tables to what the plan says: diff, apply in a safe order, verify, prune. Idempotent; what is known of the kernel
//! is recorded only after it accepted. After any error the tables are read again before the next step, so that repeating converges.
//!
//! Order of an apply: numbers, backends, Maglev tables, filter bits, rules (those of http replaced whole), service records (each the single commit point of its service),
//! frontends, for some services at a time (`work`); then removals in the opposite order of reading. What a packet on its way may still read
//! goes later, by [`Reconciler::prune`].
//! Numbers are free again only when a sweep of the flow tables that began afterwards has ended ([`Reconciler::swept`]).

mod applied;
mod bits;
mod contents;
pub mod flows;
mod running;
mod vips;
mod work;

pub use applied::{Applied, Bits, Planned};
pub use running::running;
pub use work::{Portion, Services, Work};

use crate::{
    BACKENDS, HEAD_LOSSES, HTTP_RULES, IDS, LAPSED, MAGLEV, RULES, SERVICES, Table, TableError, Tables, bytes_of,
    plan::{self, Generations, Ids, Key, OutOfIds},
};
use contents::{Changes, Garbage};
use splitter_common::{
    abi::*,
    histogram::{MAX_OCTAVE, MIN_OCTAVE},
};
use splitter_policy::model;
use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
};
use thiserror::Error;

#[derive(Debug, Error)]
pub enum ReconcileError {
    #[error(transparent)]
    Plan(#[from] OutOfIds),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error("the kernel holds another record of service {0} than was written: does another agent use the same pins?")]
    Verify(String),
    #[error("what the kernel holds is not known since a write failed; everything is read and applied again")]
    Unsure,
}

/// What an apply did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Services that are new, changed or gone.
    pub changed: usize,
    /// Services that were there before and whose intervals changed.
    pub reweighted: Vec<String>,
    /// Entries of the flow tables that went with their backends.
    pub flows_removed: usize,
}

/// A number that is given back when the flows were swept.
#[derive(Clone, Debug)]
struct Released {
    /// Its entry of `IDS`, unless that names another number by now.
    key: Option<Key>,
    identity: Identity,
    /// Sweep that was under way or next to come when it was released.
    sweep: u64,
}

/// Ethernet's.
const MTU: u32 = 1500;

/// See the module.
#[derive(Debug)]
pub struct Reconciler {
    applied: Applied,
    /// `None`: the tables have to be read first.
    numbers: Option<(Ids, Generations)>,
    /// As the kernel has it.
    filter: Vec<u64>,
    /// The filter holds bits that nobody needs any more.
    wide: bool,
    garbage: Garbage,
    released: Vec<Released>,
    vips: vips::Vips,
    /// Backends of http that are in the policy no more and finish what they have begun, with their rows; until their numbers are free.
    leaving: HashMap<u32, Backend>,
    sweep: u64,
    mtu: u32,
    /// Of the kernel's clock.
    ticks_per_second: u32,
    /// Which backends agree to TCP timestamps, as far as they were asked. `None`: nobody gets them.
    stamps: Option<HashMap<SocketAddr, bool>>,
    /// One of the two has changed since the last plan.
    new_paths: bool,
    /// New flows go through the stack, where a service does not say otherwise; and whether that has changed since the last plan.
    stack: bool,
    turned: bool,
    /// What was applied last as a whole, and services whose weights were set since.
    last: Services,
    touched: HashSet<String>,
    /// A work was begun and has not ended.
    unfinished: bool,
    /// Services that are written at once.
    portion: usize,
}

impl Default for Reconciler {
    fn default() -> Self {
        Self {
            applied: Applied::default(),
            numbers: None,
            filter: Vec::new(),
            wide: false,
            garbage: Garbage::default(),
            released: Vec::new(),
            leaving: HashMap::new(),
            vips: vips::Vips::default(),
            sweep: 0,
            mtu: MTU,
            ticks_per_second: 250,
            stamps: Some(HashMap::new()),
            new_paths: false,
            stack: false,
            turned: false,
            last: Services::default(),
            touched: HashSet::new(),
            unfinished: false,
            portion: work::PORTION,
        }
    }
}

impl Reconciler {
    pub fn new() -> Self {
        Self::default()
    }

    /// Says how fast the kernel's clock runs, before anything is applied.
    pub fn set_ticks_per_second(&mut self, ticks: u32) {
        self.ticks_per_second = ticks;
    }

    pub fn ticks_per_second(&self) -> u32 {
        self.ticks_per_second
    }

    /// How the trials of a service are timed, as its rows say.
    pub fn timing(&self, service: &splitter_policy::model::Service) -> crate::plan::trials::Timing {
        crate::plan::trials::timing_of(service, self.ticks_per_second)
    }

    /// Says which packets all paths to backends carry, bytes; the next apply brings services to it. True when that is news.
    pub fn set_mtu(&mut self, mtu: u32) -> bool {
        let news = std::mem::replace(&mut self.mtu, mtu) != mtu;
        self.new_paths |= news;
        news
    }

    /// Says whether new flows go through the stack, where their service does not say otherwise; as [`Reconciler::set_mtu`].
    pub fn set_stack(&mut self, stack: bool) -> bool {
        let news = std::mem::replace(&mut self.stack, stack) != stack;
        self.turned |= news;
        news
    }

    /// Says which backends agree to TCP timestamps; as [`Reconciler::set_mtu`].
    pub fn set_stamps(&mut self, stamps: Option<HashMap<SocketAddr, bool>>) -> bool {
        let news = stamps != self.stamps;
        self.stamps = stamps;
        self.new_paths |= news;
        news
    }

    /// What was applied last.
    pub fn applied(&self) -> &Applied {
        &self.applied
    }

    /// Backends that are in the policy no more and finish what they have begun.
    pub fn leaving(&self) -> Bits {
        let mut bits = Bits::default();
        self.leaving.keys().for_each(|id| bits.set(*id));
        bits
    }

    pub fn services(&self) -> impl ExactSizeIterator<Item = &Planned> {
        self.applied.services()
    }

    pub fn service(&self, name: &str) -> Option<&Planned> {
        self.applied.service(name)
    }

    /// Applies a whole policy at once.
    ///
    /// # Errors
    /// As [`Reconciler::advance`].
    pub fn apply(&mut self, tables: &mut impl Tables, desired: &[Arc<model::Service>]) -> Result<Report, ReconcileError> {
        let mut desired = desired.to_vec();
        desired.sort_by(|a, b| a.name.cmp(&b.name));
        let mut work = self.begin(tables, Arc::new(desired))?;
        let mut all = Vec::new();
        loop {
            let Portion { mut reweighted, report } = self.advance(tables, &mut work)?;
            all.append(&mut reweighted);
            if let Some(report) = report {
                return Ok(Report { reweighted: all, ..report });
            }
        }
    }

    /// Changes a service's weights by one write to `SERVICES`; `weights` in the order of its versions.
    ///
    /// # Errors
    /// When the kernel refuses; nothing has changed then.
    pub fn set_weights(&mut self, tables: &mut impl Tables, name: &str, weights: &[u32]) -> Result<(), ReconcileError> {
        let Some(planned) = self.applied.service_mut(name) else { return Ok(()) };
        let mut record = planned.image.record;
        plan::set_weights(&mut record, weights);
        // Without the userspace tier, the kernel's record is the commit point.
        if planned.image.node.is_none()
            && let Err(error) = SERVICES.put_one(tables, planned.image.id, record)
        {
            self.numbers = None;
            return Err(error.into());
        }
        planned.image.record = record;
        self.touched.insert(name.into());
        let model = Arc::make_mut(&mut planned.model);
        model.versions.iter_mut().zip(weights).for_each(|(version, weight)| version.weight = *weight);
        Ok(())
    }

    /// Whether the next apply has to read the tables first.
    pub fn is_unsure(&self) -> bool {
        self.numbers.is_none()
    }

    /// Removes what nothing named any more at the last call of [`Reconciler::apply`]. To be called about a second after it, when no packet
    /// that saw the old records is on its way.
    pub fn prune(&mut self, tables: &mut impl Tables) -> Result<(), TableError> {
        if self.numbers.is_none() || self.unfinished {
            return Ok(());
        }
        if !self.garbage.is_empty() {
            clear(tables, &self.garbage)?;
            self.garbage = Garbage::default();
        }
        if std::mem::take(&mut self.wide) {
            self.narrow_filter(tables).inspect_err(|_| self.wide = true)?;
        }
        Ok(())
    }

    /// Marks the begin of a sweep of all flow tables that removes the flows of backends that are gone.
    pub fn sweep_begins(&mut self) {
        self.sweep += 1;
    }

    /// Frees the numbers that were released before the sweep that has just ended began, and that it did not see `named` (kind, number).
    pub fn swept(&mut self, tables: &mut impl Tables, named: impl Fn(u32, u32) -> bool) -> Result<(), TableError> {
        self.prune(tables)?;
        let Some((ids, generations)) = &mut self.numbers else { return Ok(()) };
        // What they finish still counts for their version.
        let judged: HashSet<u32> = self.leaving.values().map(|row| row.version).collect();
        let named = |kind, id| named(kind, id) || kind == identity_kind::VERSION && judged.contains(&id);
        let unnamed = |released: &Released| released.sweep < self.sweep && !named(released.identity.kind, released.identity.id);
        let (free, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.released).into_iter().partition(unnamed);
        self.released = later;
        if free.is_empty() {
            return Ok(());
        }
        let left = free.iter().map(|released| released.identity).filter(|identity| identity.kind == identity_kind::BACKEND);
        let left: Vec<_> = left.filter(|identity| self.leaving.contains_key(&identity.id)).map(|it| (it.id, Backend::default())).collect();
        if let Err(error) = BACKENDS.put(tables, &left).and_then(|()| forget(tables, &free)) {
            self.released.extend(free);
            return Err(error);
        }
        for (id, _) in &left {
            self.leaving.remove(id);
        }
        self.wide |= !left.is_empty();
        for released in free {
            match released.key {
                Some(key) => ids.free(&key),
                None => ids.free_number(released.identity.kind, released.identity.id),
            }
            if released.identity.kind == identity_kind::VERSION {
                generations.forget(released.identity.id);
            }
            if released.identity.kind == identity_kind::BACKEND {
                self.applied.disown(released.identity.id);
            }
        }
        Ok(())
    }
}

/// Reads back what was written.
fn verify(tables: &impl Tables, planned: &[Planned], changes: &Changes) -> Result<(), ReconcileError> {
    let wrong = |id: u32| {
        let named = planned.iter().find(|planned| planned.image.id == id);
        ReconcileError::Verify(named.map_or_else(|| format!("number {id}"), |planned| planned.model.name.clone()))
    };
    for (id, rules) in &changes.http {
        if HTTP_RULES.get(tables, *id)?.as_ref() != Some(&**rules) {
            return Err(wrong(*id));
        }
    }
    for (id, record) in &changes.services {
        if SERVICES.get(tables, *id)? != Some(*record) {
            return Err(wrong(*id));
        }
    }
    Ok(())
}

fn clear(tables: &mut impl Tables, garbage: &Garbage) -> Result<(), TableError> {
    SERVICES.delete(tables, &garbage.services)?;
    RULES.delete(tables, &garbage.rules)?;
    HTTP_RULES.delete(tables, &garbage.http)?;
    let chunks = |(version, table, count): &(u32, u32, u32)| {
        let (version, table) = (*version, *table);
        (0..*count).map(move |chunk| MaglevKey { version, table, chunk })
    };
    let keys: Vec<MaglevKey> = garbage.tables.iter().flat_map(chunks).collect();
    MAGLEV.delete(tables, &keys)
}

/// Takes numbers out of `IDS` after their counters were cleared for the next owner.
fn forget(tables: &mut impl Tables, free: &[Released]) -> Result<(), TableError> {
    let versions: Vec<u32> = free.iter().map(|r| r.identity).filter(|i| i.kind == identity_kind::VERSION).map(|i| i.id).collect();
    let zeros = vec![0u8; tables.value_size(Table::Counters)];
    let mut histograms = Vec::new();
    for version in &versions {
        tables.put(Table::Counters, bytes_of(&[*version]), &zeros)?;
        for (measure, ruled) in Measure::ALL.into_iter().flat_map(|measure| [(measure, false), (measure, true)]) {
            histograms.extend((MIN_OCTAVE..=MAX_OCTAVE).map(|octave| HistogramKey::new(*version, measure, ruled, octave)));
        }
    }
    LAPSED.delete(tables, &versions)?;
    let services = free.iter().map(|r| r.identity).filter(|i| i.kind == identity_kind::SERVICE).map(|i| i.id);
    let losses = services.flat_map(|service| LOSSES.map(|reason| LossKey { service, reason: reason as u32 }));
    HEAD_LOSSES.delete(tables, &losses.collect::<Vec<_>>())?;
    if !histograms.is_empty() {
        tables.delete(Table::Histograms, bytes_of(&histograms))?;
    }
    let keys: Vec<Key> = free.iter().filter_map(|released| released.key).collect();
    IDS.delete(tables, &keys)
}

#[cfg(test)]
mod tests;
