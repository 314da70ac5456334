//! Brings the kernel's tables to what the plan says: diff, apply in a safe order, verify, prune. Idempotent; what is known of the kernel
//! is recorded only after it accepted. After any error the tables are read again before the next step, so that repeating converges.
//!
//! Order of an apply: numbers, backends, Maglev tables, filter bits, rules (those of http replaced whole), service records (each the single commit point of its service),
//! frontends; then removals in the opposite order of reading. What a packet on its way may still read goes later, by [`Reconciler::prune`].
//! Numbers are free again only when a sweep of the flow tables that began afterwards has ended ([`Reconciler::swept`]).

mod applied;
mod bits;
mod contents;
pub mod flows;

pub use applied::{Applied, Planned};

use crate::{
    datapath::{BACKENDS, FRONTENDS, HTTP_RULES, IDS, MAGLEV, RULES, SCAN, SERVICES, Table, TableError, Tables, bytes_of, bytes_of_mut},
    model,
    plan::{self, Generations, Ids, Key, MaglevTable, OutOfIds, Previous},
};
use bits::set_bits;
use contents::{Changes, Contents, Garbage, diff, observe};
use splitter_common::{
    abi::*,
    filter,
    histogram::{MAX_OCTAVE, MIN_OCTAVE},
};
use std::{
    collections::{HashMap, HashSet},
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

/// Rules of http services that are written at once; each takes some kilobytes.
const HTTP_BATCH: usize = 256;

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
    sweep: u64,
    mtu: u32,
}

/// What one apply will do, planned but not begun.
#[derive(Default)]
struct Step {
    old: Contents,
    new: Contents,
    planned: Vec<Planned>,
    gone: Vec<String>,
    keys_gone: Vec<(u32, Key)>,
    /// The filter may hold bits that nobody needs.
    exact: bool,
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
            sweep: 0,
            mtu: MTU,
        }
    }
}

impl Reconciler {
    pub fn new() -> Self {
        Self::default()
    }

    /// Says which packets all paths to backends carry, bytes; the next apply brings services to it. True when that is news.
    pub fn set_mtu(&mut self, mtu: u32) -> bool {
        std::mem::replace(&mut self.mtu, mtu) != mtu
    }

    /// What was applied last.
    pub fn applied(&self) -> &Applied {
        &self.applied
    }

    pub fn services(&self) -> impl ExactSizeIterator<Item = &Planned> {
        self.applied.services()
    }

    pub fn service(&self, name: &str) -> Option<&Planned> {
        self.applied.service(name)
    }

    /// Applies a whole policy.
    ///
    /// # Errors
    /// What is wrong; the tables may be half-way, never mixed within a service. Repeating converges.
    pub fn apply(&mut self, tables: &mut impl Tables, desired: &[Arc<model::Service>]) -> Result<Report, ReconcileError> {
        let result = self.try_apply(tables, desired);
        if result.is_err() {
            self.numbers = None;
        }
        result
    }

    fn try_apply(&mut self, tables: &mut impl Tables, desired: &[Arc<model::Service>]) -> Result<Report, ReconcileError> {
        let mut step = match self.numbers {
            None => self.plan_all(tables, desired)?,
            Some(_) => self.plan_changed(desired)?,
        };
        let changes = diff(&step.old, &step.new, step.planned.iter().map(|planned| &planned.image));
        let reused = self.garbage.split_services(|id| step.new.services.contains_key(&id));
        clear(tables, &reused)?;
        let flows_removed = self.write(tables, &step, &changes)?;
        let reweighted = step.planned.iter().filter(|planned| self.reweighted(planned)).map(|planned| planned.model.name.clone()).collect();
        let report = Report { changed: changed_services(&step, &changes), reweighted, flows_removed };
        self.record(&mut step, changes);
        Ok(report)
    }

    fn reweighted(&self, new: &Planned) -> bool {
        let ends = |planned: &Planned| planned.image.record.versions.map(|slot| (slot.version, slot.end));
        self.service(&new.model.name).is_some_and(|old| ends(old) != ends(new))
    }

    /// Reads the tables and plans everything.
    fn plan_all(&mut self, tables: &impl Tables, desired: &[Arc<model::Service>]) -> Result<Step, ReconcileError> {
        let observed = observe(tables)?;
        let mut step = Step { old: observed.contents, ..Step::default() };
        self.filter = vec![0; filter::WORDS as usize];
        tables.get(Table::Filter, bytes_of(&[0u32]), bytes_of_mut(&mut self.filter))?;
        self.garbage = observed.garbage;
        self.released.clear();
        let (ids, generations) = self.numbers.insert((observed.ids, observed.generations));
        let mut rules: HashMap<u32, Vec<(RuleKey, u32)>> = HashMap::new();
        for (key, index) in &step.old.rules {
            rules.entry(u32::from_be_bytes(key.service)).or_default().push((*key, *index));
        }
        let mut live: HashSet<Key> = HashSet::new();
        for service in desired {
            live.extend(plan::keys(service).into_iter().map(|(_, key)| key));
            let previous = |id: u32| {
                let record = *step.old.services.get(&id)?;
                Some(Previous { record, rules: rules.remove(&id).unwrap_or_default() })
            };
            let image = plan::plan(service, self.mtu, ids, generations, previous)?;
            step.new.add(&image);
            step.planned.push(Planned { model: service.clone(), image });
        }
        step.keys_gone = ids.iter().filter(|(key, _)| !live.contains(*key)).map(|(key, identity)| (identity.kind, *key)).collect();
        step.exact = true;
        let names = step.new_names();
        let gone = self.services().map(|planned| &planned.model.name).filter(|name| !names.contains(name.as_str())).cloned().collect();
        step.gone = gone;
        Ok(step)
    }

    /// Plans what differs from what was applied last.
    fn plan_changed(&mut self, desired: &[Arc<model::Service>]) -> Result<Step, ReconcileError> {
        let mut step = Step::default();
        let Some((ids, generations)) = &mut self.numbers else { return Ok(step) };
        let mut live: HashSet<Key> = HashSet::new();
        let mut same = 0;
        for service in desired {
            if let Some(old) = self.applied.service(&service.name)
                && unchanged(&old.model, service)
                && (service.http.is_none() || old.image.record.mss == plan::http::mss(service, self.mtu))
            {
                // Its place in the file may have moved.
                if let Some(old) = self.applied.service_mut(&service.name).filter(|old| !Arc::ptr_eq(&old.model, service)) {
                    old.model = service.clone();
                }
                same += 1;
                continue;
            }
            let old = self.applied.service(&service.name);
            live.extend(plan::keys(service).into_iter().map(|(_, key)| key));
            let previous = |id: u32| old.filter(|old| old.image.id == id).map(|old| Previous::from(&old.image));
            let image = plan::plan(service, self.mtu, ids, generations, previous)?;
            if let Some(old) = old {
                step.old.add(&old.image);
                step.keys_gone.extend(plan::keys(&old.model));
            }
            step.new.add(&image);
            step.planned.push(Planned { model: service.clone(), image });
        }
        let replaced = step.planned.iter().filter(|planned| self.applied.service(&planned.model.name).is_some()).count();
        if same + replaced < self.applied.services().len() {
            let names: HashSet<&str> = desired.iter().map(|service| service.name.as_str()).collect();
            for old in self.applied.services().filter(|old| !names.contains(old.model.name.as_str())) {
                step.old.add(&old.image);
                step.keys_gone.extend(plan::keys(&old.model));
                step.gone.push(old.model.name.clone());
            }
        }
        step.keys_gone.retain(|(_, key)| !live.contains(key));
        Ok(step)
    }

    /// Writes all stages; returns how many flow entries were removed.
    fn write(&mut self, tables: &mut impl Tables, step: &Step, changes: &Changes) -> Result<usize, ReconcileError> {
        if let Some((ids, _)) = &mut self.numbers {
            IDS.put(tables, &ids.take_fresh())?;
        }
        BACKENDS.put(tables, &changes.backends)?;
        // Built in portions: all tables of a large policy at once would take a hundred megabytes.
        for part in changes.tables.chunks(SCAN / 4) {
            let chunks: Vec<_> = part.iter().flat_map(MaglevTable::chunks).collect();
            MAGLEV.put(tables, &chunks)?;
        }
        let wider = self.widened(&step.planned);
        self.put_filter(tables, wider)?;
        RULES.put(tables, &changes.rules)?;
        for part in changes.http.chunks(HTTP_BATCH) {
            let rows: Vec<_> = part.iter().map(|(id, rules)| (*id, **rules)).collect();
            HTTP_RULES.put(tables, &rows)?;
        }
        SERVICES.put(tables, &changes.services)?;
        verify(tables, step, changes)?;
        FRONTENDS.put(tables, &changes.frontends)?;
        BACKENDS.put(tables, &changes.backends_late)?;
        FRONTENDS.delete(tables, &changes.frontends_gone)?;
        RULES.delete(tables, &changes.rules_gone)?;
        let none: Vec<_> = changes.backends_gone.iter().map(|id| (*id, Backend::default())).collect();
        BACKENDS.put(tables, &none)?;
        let mut dead: HashSet<u32> = changes.backends_gone.iter().copied().collect();
        dead.extend(changes.backends_late.iter().filter(|(_, row)| row.state == backend_state::DOWN).map(|(id, _)| *id));
        let removed = if dead.is_empty() { 0 } else { flows::purge(tables, &|id| dead.contains(&id))? };
        // The bits of what is gone stay until the tables are pruned: late answers of removed backends still become resets.
        // So do those that mark packets of http.
        let other_mode = |new: &Planned| self.service(&new.model.name).is_some_and(|old| old.image.record.mode != new.image.record.mode);
        self.wide |= !changes.backends_gone.is_empty() || !changes.frontends_gone.is_empty() || step.planned.iter().any(other_mode);
        if step.exact {
            let exact = self.exact_filter(step);
            self.put_filter(tables, exact)?;
        }
        Ok(removed)
    }

    /// The kernel has accepted everything.
    fn record(&mut self, step: &mut Step, changes: Changes) {
        let live: HashSet<Key> = step.planned.iter().flat_map(|planned| plan::keys(&planned.model)).map(|(_, key)| key).collect();
        self.released.retain(|released| released.key.is_none_or(|key| !live.contains(&key)));
        for name in &step.gone {
            self.applied.remove(name);
        }
        let Some((ids, _)) = &self.numbers else { return };
        let mut by_key: HashSet<u32> = HashSet::new();
        for (kind, key) in &step.keys_gone {
            if let Some(identity) = ids.get(key) {
                if *kind == identity_kind::SERVICE {
                    by_key.insert(identity.id);
                }
                self.released.push(Released { key: Some(*key), identity, sweep: self.sweep });
            }
        }
        // Numbers that a service left for another one.
        for id in changes.garbage.services.iter().filter(|id| !by_key.contains(id)) {
            let identity = Identity { kind: identity_kind::SERVICE, id: *id };
            self.released.push(Released { key: None, identity, sweep: self.sweep });
        }
        self.garbage.append(changes.garbage);
        self.applied.insert(step.planned.drain(..));
    }

    /// Changes a service's weights by one write to `SERVICES`; `weights` in the order of its versions.
    ///
    /// # Errors
    /// When the kernel refuses; nothing has changed then.
    pub fn set_weights(&mut self, tables: &mut impl Tables, name: &str, weights: &[u32]) -> Result<(), ReconcileError> {
        let Some(planned) = self.applied.service_mut(name) else { return Ok(()) };
        let mut record = planned.image.record;
        plan::set_weights(&mut record, weights);
        if let Err(error) = SERVICES.put_one(tables, planned.image.id, record) {
            self.numbers = None;
            return Err(error.into());
        }
        planned.image.record = record;
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
        if self.numbers.is_some() && !self.garbage.is_empty() {
            clear(tables, &self.garbage)?;
            self.garbage = Garbage::default();
        }
        if self.numbers.is_some() && self.wide {
            let mut words = vec![0; filter::WORDS as usize];
            self.services().for_each(|planned| set_bits(&mut words, &planned.image));
            self.put_filter(tables, words)?;
            self.wide = false;
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
        let unnamed = |released: &Released| released.sweep < self.sweep && !named(released.identity.kind, released.identity.id);
        let (free, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.released).into_iter().partition(unnamed);
        self.released = later;
        if free.is_empty() {
            return Ok(());
        }
        if let Err(error) = forget(tables, &free) {
            self.released.extend(free);
            return Err(error);
        }
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

impl Step {
    fn new_names(&self) -> HashSet<&str> {
        self.planned.iter().map(|planned| planned.model.name.as_str()).collect()
    }
}

/// How many services an apply touched: after a restart everything is planned, and usually nothing differs.
fn changed_services(step: &Step, changes: &Changes) -> usize {
    if !step.exact {
        return step.planned.len() + step.gone.len();
    }
    let mut touched: HashSet<u32> = changes.services.iter().map(|(id, _)| *id).collect();
    touched.extend(changes.frontends.iter().map(|(_, id)| *id));
    touched.extend(changes.backends.iter().chain(&changes.backends_late).map(|(_, row)| row.service));
    touched.extend(changes.rules.iter().map(|(key, _)| key).chain(&changes.rules_gone).map(|key| u32::from_be_bytes(key.service)));
    touched.extend(changes.http.iter().map(|(id, _)| *id));
    touched.extend(changes.garbage.services.iter().chain(&changes.garbage.http));
    touched.len()
}

/// Reads back what was written.
fn verify(tables: &impl Tables, step: &Step, changes: &Changes) -> Result<(), ReconcileError> {
    let wrong = |id: u32| {
        let named = step.planned.iter().find(|planned| planned.image.id == id);
        ReconcileError::Verify(named.map_or_else(|| format!("number {id}"), |planned| planned.model.name.clone()))
    };
    for (id, rules) in &changes.http {
        if HTTP_RULES.get(tables, *id)?.as_ref() != Some(&**rules) {
            return Err(wrong(*id));
        }
    }
    if changes.services.len() <= SCAN {
        for (id, record) in &changes.services {
            if SERVICES.get(tables, *id)? != Some(*record) {
                return Err(wrong(*id));
            }
        }
        return Ok(());
    }
    let mut expected: HashMap<u32, &Service> = changes.services.iter().map(|(id, record)| (*id, record)).collect();
    SERVICES.each(tables, |id, record| {
        if expected.get(&id).is_some_and(|expected| **expected == record) {
            expected.remove(&id);
        }
    })?;
    expected.keys().next().map_or(Ok(()), |id| Err(wrong(*id)))
}

/// Equal but for where the object stands in its file.
fn unchanged(a: &model::Service, b: &model::Service) -> bool {
    let model::Service { name, frontends, mode, split_by, versions, rules, http, on_weight_change, snat, rollout: _, origin: _ } = a;
    *name == b.name
        && *frontends == b.frontends
        && *mode == b.mode
        && *split_by == b.split_by
        && *versions == b.versions
        && *rules == b.rules
        && *http == b.http
        && *on_weight_change == b.on_weight_change
        && *snat == b.snat
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
        for measure in Measure::ALL {
            histograms.extend((MIN_OCTAVE..=MAX_OCTAVE).map(|octave| HistogramKey::new(*version, measure, octave)));
        }
    }
    if !histograms.is_empty() {
        tables.delete(Table::Histograms, bytes_of(&histograms))?;
    }
    let keys: Vec<Key> = free.iter().filter_map(|released| released.key).collect();
    IDS.delete(tables, &keys)
}

#[cfg(test)]
mod tests;
