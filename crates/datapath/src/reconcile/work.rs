//! An apply in portions: what is to be done, and the next part of it. Between two portions the tables hold a whole policy for every service,
//! the old one or the new one, so that whoever owns the reconciler can do other things meanwhile. Decides nothing about when.

use super::{
    Planned, ReconcileError, Reconciler, Released, Report,
    applied::Bits,
    clear,
    contents::{Changes, Contents, Gone, observe},
    flows, verify,
};
use crate::{
    BACKENDS, FRONTENDS, HTTP_RULES, IDS, MAGLEV, RULES, SERVICES, Table, Tables, bytes_of, bytes_of_mut,
    plan::{self, Key, Previous, ServiceImage},
};
use splitter_common::{abi::*, filter};
use splitter_policy::model;
use std::{
    cmp::Ordering,
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
};

/// Services of one portion: some milliseconds.
pub(super) const PORTION: usize = 256;
/// Entries that are removed at once.
const REMOVED: usize = 4096;

/// Services in the order of their names.
pub type Services = Arc<Vec<Arc<model::Service>>>;

/// See the module.
#[derive(Debug)]
pub struct Work {
    desired: Services,
    /// Indexes of services that differ, in order, and how many of them are done.
    todo: Vec<usize>,
    next: usize,
    /// Of those behind `next`, done already.
    early: HashSet<usize>,
    /// Names of services that are no longer wanted.
    removed: Vec<String>,
    /// What the kernel held at the begin, without what was claimed since; `None` when that is known from what was applied.
    found: Option<Found>,
    gone: Gone,
    keys_gone: Vec<(u32, Key)>,
    /// Frontends that were written: another service may have lost them.
    frontends: Vec<FrontendKey>,
    dead: HashSet<u32>,
    /// The filter may hold bits that nobody needs.
    exact: bool,
    stage: Stage,
    report: Report,
}

/// What was read from the tables.
#[derive(Debug)]
struct Found {
    contents: Contents,
    rules: HashMap<u32, Vec<(RuleKey, u32)>>,
    touched: HashSet<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Write,
    Remove,
    Done,
}

/// What one portion did.
#[derive(Clone, Debug, Default)]
pub struct Portion {
    /// Services that were there before and whose intervals changed.
    pub reweighted: Vec<String>,
    /// Of the whole apply, when this was the last portion.
    pub report: Option<Report>,
}

impl Work {
    fn new(desired: Services) -> Self {
        Self {
            desired,
            todo: Vec::new(),
            next: 0,
            early: HashSet::new(),
            removed: Vec::new(),
            found: None,
            gone: Gone::default(),
            keys_gone: Vec::new(),
            frontends: Vec::new(),
            dead: HashSet::new(),
            exact: false,
            stage: Stage::Write,
            report: Report::default(),
        }
    }

    /// The next services to write.
    fn portion(&mut self, most: usize) -> Vec<Arc<model::Service>> {
        let mut services = Vec::with_capacity(most.min(self.todo.len() - self.next));
        while services.len() < most
            && let Some(index) = self.todo.get(self.next)
        {
            self.next += 1;
            if !self.early.remove(index) {
                services.push(self.desired[*index].clone());
            }
        }
        services
    }

    /// The index of a service that is not written yet.
    fn waiting(&self, name: &str) -> Option<usize> {
        let index = self.desired.binary_search_by(|service| service.name.as_str().cmp(name)).ok()?;
        let waits = self.todo[self.next..].binary_search(&index).is_ok() && !self.early.contains(&index);
        waits.then_some(index)
    }
}

impl Reconciler {
    /// Begins to apply a whole policy, in the order of the services' names. Nothing is written yet. The work is to be advanced until it says
    /// that it is done; one that is dropped before makes the next apply read the tables again.
    ///
    /// # Errors
    /// When the tables cannot be read, or hold less than the policy needs.
    pub fn begin(&mut self, tables: &impl Tables, desired: Services) -> Result<Work, ReconcileError> {
        debug_assert!(desired.is_sorted_by(|a, b| a.name < b.name), "services are not in order");
        if std::mem::replace(&mut self.unfinished, true) {
            self.numbers = None;
        }
        let mut work = Work::new(desired);
        if self.numbers.is_none() {
            self.read(tables, &mut work).inspect_err(|_| self.numbers = None)?;
        } else {
            self.find_changed(&mut work);
        }
        self.has_room(&work).inspect_err(|_| self.numbers = None)?;
        Ok(work)
    }

    /// A policy that the maps cannot hold is refused before anything of it is written.
    fn has_room(&self, work: &Work) -> Result<(), ReconcileError> {
        let (ids, _) = self.numbers.as_ref().ok_or(ReconcileError::Unsure)?;
        let (mut most, services) = ([0; 3], || work.todo.iter().map(|index| &work.desired[*index]));
        for service in services() {
            most[plan::index(identity_kind::SERVICE)] += 1;
            let node = usize::from(service.mode == model::Mode::Https);
            most[plan::index(identity_kind::VERSION)] += service.versions.len() + node;
            most[plan::index(identity_kind::BACKEND)] +=
                service.versions.iter().map(|version| version.backends.len()).sum::<usize>() + node;
        }
        if ids.room_for(most).is_ok() {
            return Ok(());
        }
        let mut wanted = [0; 3];
        for (kind, _) in services().flat_map(|service| plan::keys(service)).filter(|(_, key)| ids.get(key).is_none()) {
            wanted[plan::index(kind)] += 1;
        }
        Ok(ids.room_for(wanted)?)
    }

    /// Reads the tables; everything is to be planned.
    fn read(&mut self, tables: &impl Tables, work: &mut Work) -> Result<(), ReconcileError> {
        let observed = observe(tables)?;
        self.filter = vec![0; filter::WORDS as usize];
        tables.get(Table::Filter, bytes_of(&[0u32]), bytes_of_mut(&mut self.filter))?;
        self.garbage = observed.garbage;
        self.released.clear();
        self.numbers = Some((observed.ids, observed.generations));
        let mut rules: HashMap<u32, Vec<(RuleKey, u32)>> = HashMap::new();
        for (key, index) in &observed.contents.rules {
            rules.entry(u32::from_be_bytes(key.service)).or_default().push((*key, *index));
        }
        work.found = Some(Found { contents: observed.contents, rules, touched: HashSet::new() });
        work.todo = (0..work.desired.len()).collect();
        let names: HashSet<&str> = work.desired.iter().map(|service| service.name.as_str()).collect();
        work.removed = self.services().map(|old| &old.model.name).filter(|name| !names.contains(name.as_str())).cloned().collect();
        Ok(())
    }

    /// Finds what differs from what was applied last. A service that is the same object is not looked at.
    fn find_changed(&mut self, work: &mut Work) {
        let (old, desired) = (std::mem::take(&mut self.last), work.desired.clone());
        let (all, turned) = (std::mem::take(&mut self.new_paths), std::mem::take(&mut self.turned));
        let (mut i, mut j) = (0, 0);
        while i < old.len() || j < desired.len() {
            let order = match (old.get(i), desired.get(j)) {
                (Some(a), Some(b)) if Arc::ptr_eq(a, b) => {
                    if all && b.http.is_some() || turned || !self.touched.is_empty() && self.touched.contains(&b.name) {
                        self.look(j, work);
                    }
                    (i, j) = (i + 1, j + 1);
                    continue;
                }
                (Some(a), Some(b)) => a.name.cmp(&b.name),
                (Some(_), None) => Ordering::Less,
                (None, _) => Ordering::Greater,
            };
            if order.is_le() {
                i += 1;
            }
            if order.is_lt() {
                work.removed.push(old[i - 1].name.clone());
            } else {
                self.look(j, work);
                j += 1;
            }
        }
        self.touched.clear();
    }

    /// Whether a service differs from what was applied.
    fn look(&mut self, index: usize, work: &mut Work) {
        let service = &work.desired[index];
        let Some(old) = self.applied.service(&service.name) else { return work.todo.push(index) };
        let paths = || same_paths(&old.image.record, service, self.mtu, self.stamps.as_ref());
        let path = old.image.record.flags & service_flag::STACK != plan::path(service, self.stack);
        if !unchanged(&old.model, service) || service.http.is_some() && !paths() || path {
            work.todo.push(index);
        } else if !Arc::ptr_eq(&old.model, service)
            && let Some(old) = self.applied.service_mut(&service.name)
        {
            // Its place in the file may have moved.
            old.model = service.clone();
        }
    }

    /// Does the next portion.
    ///
    /// # Errors
    /// What is wrong; the work is over then. The tables may be half-way, never mixed within a service. Beginning again converges.
    pub fn advance(&mut self, tables: &mut impl Tables, work: &mut Work) -> Result<Portion, ReconcileError> {
        if self.numbers.is_none() {
            return Err(ReconcileError::Unsure);
        }
        let result = match work.stage {
            Stage::Write => {
                let services = work.portion(self.portion);
                if services.is_empty() {
                    self.all_written(work);
                    Ok(Portion::default())
                } else {
                    self.write(tables, work, &services)
                }
            }
            Stage::Remove => self.remove(tables, work),
            Stage::Done => Ok(Portion { report: Some(work.report.clone()), ..Portion::default() }),
        };
        result.inspect_err(|_| self.numbers = None)
    }

    /// Writes one service now, when it still waits: the answer is `None` when it does not.
    ///
    /// # Errors
    /// As [`Reconciler::advance`].
    pub fn advance_service(&mut self, tables: &mut impl Tables, work: &mut Work, name: &str) -> Result<Option<Portion>, ReconcileError> {
        let Some(index) = work.waiting(name) else { return Ok(None) };
        if self.numbers.is_none() {
            return Err(ReconcileError::Unsure);
        }
        work.early.insert(index);
        let service = work.desired[index].clone();
        self.write(tables, work, &[service]).map(Some).inspect_err(|_| self.numbers = None)
    }

    /// All stages but the removals, for some services.
    fn write(&mut self, tables: &mut impl Tables, work: &mut Work, services: &[Arc<model::Service>]) -> Result<Portion, ReconcileError> {
        let (planned, reweighted) = self.plan(work, services)?;
        let mut old = Contents::default();
        if work.found.is_none() {
            planned.iter().filter_map(|planned| self.service(&planned.model.name)).for_each(|known| old.add(&known.image));
        }
        let mut changes = Changes::default();
        let from = work.found.as_mut().map_or(&mut old, |found| &mut found.contents);
        planned.iter().for_each(|planned| changes.compare(from, &planned.image));
        let changes = changes.in_order();
        let ids: HashSet<u32> = planned.iter().map(|planned| planned.image.id).collect();
        clear(tables, &self.garbage.split_services(|id| ids.contains(&id)))?;
        self.put(tables, &planned, &changes)?;
        work.gone.add(old, |id| ids.contains(&id));
        work.frontends.extend(changes.frontends.iter().map(|(frontend, _)| *frontend));
        work.dead.extend(changes.backends_late.iter().filter(|(_, row)| row.state == backend_state::DOWN).map(|(id, _)| *id));
        match &mut work.found {
            Some(found) => found.touched.extend(&changes.touched),
            None => work.report.changed += planned.len(),
        }
        self.record(work, planned);
        // What was found in the kernel is compared with all, in the end.
        if work.found.is_none() {
            self.vips.put(tables)?;
        }
        Ok(Portion { reweighted, report: None })
    }

    /// Plans some services, and says which of them were there with other intervals.
    fn plan(&mut self, work: &mut Work, services: &[Arc<model::Service>]) -> Result<(Vec<Planned>, Vec<String>), ReconcileError> {
        let (mut planned, mut reweighted) = (Vec::with_capacity(services.len()), Vec::new());
        let (ids, generations) = self.numbers.as_mut().ok_or(ReconcileError::Unsure)?;
        for service in services {
            let applied = self.applied.service(&service.name).map(|old| &old.image);
            let mut before = applied.map(|image| image.record);
            let previous = |id: u32| match &mut work.found {
                Some(found) => {
                    let record = *found.contents.services.get(&id)?;
                    // What the kernel ran when this agent came.
                    before.get_or_insert(record);
                    Some(Previous { record, rules: found.rules.remove(&id).unwrap_or_default() })
                }
                None => applied.filter(|old| old.id == id).map(Previous::from),
            };
            let mut image = plan::plan(service, self.mtu, ids, generations, previous)?;
            plan::trials::watch(&mut image, service, self.ticks_per_second);
            image.record.flags |= plan::http::stamps(service, self.stamps.as_ref(), before.map_or(0, |before| before.flags));
            image.record.flags |= plan::path(service, self.stack);
            let ends = |record: &Service| record.versions.map(|slot| (slot.version, slot.end));
            // The kernel does not know the weights that the userspace tier decides by.
            let comparable = image.node.is_none() || applied.is_some();
            if comparable && before.is_some_and(|before| ends(&before) != ends(&image.record)) {
                reweighted.push(service.name.clone());
            }
            planned.push(Planned { model: service.clone(), image });
        }
        Ok((planned, reweighted))
    }

    fn put(&mut self, tables: &mut impl Tables, planned: &[Planned], changes: &Changes) -> Result<(), ReconcileError> {
        if let Some((ids, _)) = &mut self.numbers {
            IDS.put(tables, &ids.take_fresh())?;
        }
        BACKENDS.put(tables, &changes.backends)?;
        let chunks: Vec<_> = changes.tables.iter().flat_map(plan::MaglevTable::chunks).collect();
        MAGLEV.put(tables, &chunks)?;
        self.widen_filter(tables, planned)?;
        RULES.put(tables, &changes.rules)?;
        let rows: Vec<_> = changes.http.iter().map(|(id, rules)| (*id, **rules)).collect();
        HTTP_RULES.put(tables, &rows)?;
        SERVICES.put(tables, &changes.services)?;
        verify(tables, planned, changes)?;
        FRONTENDS.put(tables, &changes.frontends)?;
        Ok(BACKENDS.put(tables, &changes.backends_late)?)
    }

    /// The kernel has accepted a portion.
    fn record(&mut self, work: &mut Work, planned: Vec<Planned>) {
        let Some((ids, _)) = &self.numbers else { return };
        if !self.released.is_empty() {
            let live: HashSet<(u32, u32)> = planned.iter().flat_map(|planned| numbers(&planned.image)).collect();
            let is_live = |key: &Key| ids.get(key).is_some_and(|identity| live.contains(&(identity.kind, identity.id)));
            self.released.retain(|released| released.key.is_none_or(|key| !is_live(&key)));
        }
        for planned in &planned {
            self.vips.replace(self.applied.service(&planned.model.name), Some(planned));
            for (id, _) in &planned.image.backends {
                self.leaving.remove(id);
            }
            let Some(old) = self.applied.service(&planned.model.name) else { continue };
            // What a packet of http is marked by stays until the tables are pruned.
            self.wide |= old.image.kernel().mode != planned.image.kernel().mode;
            let now: HashSet<(u32, u32)> = numbers(&planned.image).collect();
            let lost = |number: &(u32, u32)| number.0 != identity_kind::SERVICE && !now.contains(number);
            if work.found.is_none() && numbers(&old.image).any(|number| lost(&number)) {
                let live: HashSet<Key> = plan::keys(&planned.model).into_iter().map(|(_, key)| key).collect();
                work.keys_gone.extend(plan::keys(&old.model).into_iter().filter(|(_, key)| !live.contains(key)));
            }
        }
        self.applied.insert(planned);
    }

    /// All services are as they shall be: what is left has to go.
    fn all_written(&mut self, work: &mut Work) {
        work.stage = Stage::Remove;
        match work.found.take() {
            Some(found) => self.unclaimed(work, found),
            None => {
                let mut old = Contents::default();
                for known in work.removed.iter().filter_map(|name| self.applied.service(name)) {
                    old.add(&known.image);
                    work.keys_gone.extend(plan::keys(&known.model));
                }
                work.gone.add(old, |_| false);
                work.report.changed += work.removed.len();
            }
        }
        let moved: HashSet<FrontendKey> = std::mem::take(&mut work.frontends).into_iter().collect();
        work.gone.frontends.retain(|frontend| !moved.contains(frontend));
        // A shorter prefix first out.
        work.gone.rules.sort_unstable_by_key(|key| std::cmp::Reverse(key.prefix_len));
        // Who has left a service that is gone now has nothing to finish.
        let gone_services: HashSet<u32> = work.gone.garbage.services.iter().copied().collect();
        work.gone.backends.extend(self.leaving.iter().filter(|(_, row)| gone_services.contains(&row.service)).map(|(id, row)| (*id, *row)));
        work.dead.extend(work.gone.backends.iter().map(|(id, _)| *id));
        // Bits of what is gone stay until the tables are pruned: late answers of removed backends still become resets.
        self.wide |= !work.gone.backends.is_empty() || !work.gone.frontends.is_empty();
    }

    fn unclaimed(&mut self, work: &mut Work, found: Found) {
        let mut used: [Bits; 3] = Default::default();
        for (kind, id) in self.services().flat_map(|planned| numbers(&planned.image)) {
            used[plan::index(kind)].set(id);
        }
        for name in &work.removed {
            let own = self.applied.service(name).into_iter().flat_map(|old| numbers(&old.image));
            own.for_each(|(kind, id)| used[plan::index(kind)].clear(id));
        }
        work.gone.add(found.contents, |id| used[plan::index(identity_kind::SERVICE)].has(id));
        if let Some((ids, _)) = &self.numbers {
            let unused = ids.iter().filter(|(_, identity)| !used[plan::index(identity.kind)].has(identity.id));
            work.keys_gone.extend(unused.map(|(key, identity)| (identity.kind, *key)));
        }
        let mut touched = found.touched;
        touched.extend(work.gone.rules.iter().chain(&work.gone.garbage.rules).map(|key| u32::from_be_bytes(key.service)));
        touched.extend(work.gone.garbage.services.iter().chain(&work.gone.garbage.http));
        work.report.changed = touched.len();
        work.exact = true;
    }

    /// In the opposite order of reading.
    fn remove(&mut self, tables: &mut impl Tables, work: &mut Work) -> Result<Portion, ReconcileError> {
        let gone = &mut work.gone;
        if !gone.frontends.is_empty() {
            FRONTENDS.delete(tables, &last(&mut gone.frontends))?;
        } else if !gone.rules.is_empty() {
            RULES.delete(tables, &last(&mut gone.rules))?;
        } else if !gone.backends.is_empty() {
            let (gone_services, left) = (&gone.garbage.services, last(&mut gone.backends));
            let mut http: HashMap<u32, bool> = HashMap::new();
            let mut rows = Vec::with_capacity(left.len());
            for (id, row) in left {
                let finishes = match http.get(&row.service) {
                    _ if !backend_state::finishes(row.state) => false,
                    Some(known) => *known,
                    None => {
                        let http_now = |record: Service| record.mode == service_mode::HTTP && !gone_services.contains(&row.service);
                        *http.entry(row.service).or_insert(SERVICES.get(tables, row.service)?.is_some_and(http_now))
                    }
                };
                let row = if finishes { Backend { state: backend_state::LEAVING, ..row } } else { Backend::default() };
                rows.push((id, row));
            }
            BACKENDS.put(tables, &rows)?;
            for (id, row) in rows {
                if row.state == backend_state::LEAVING {
                    self.leaving.insert(id, row);
                } else {
                    self.leaving.remove(&id);
                }
            }
        } else {
            let dead = &work.dead;
            work.report.flows_removed = if dead.is_empty() { 0 } else { flows::purge(tables, &|id| dead.contains(&id))? };
            if work.exact {
                self.drop_removed(work);
                self.narrow_filter(tables)?;
                self.vips.repair(tables)?;
            }
            self.finish(work);
            self.vips.put(tables)?;
            return Ok(Portion { report: Some(work.report.clone()), ..Portion::default() });
        }
        Ok(Portion::default())
    }

    fn drop_removed(&mut self, work: &Work) {
        for name in &work.removed {
            self.vips.replace(self.applied.service(name), None);
            self.applied.remove(name);
        }
    }

    fn finish(&mut self, work: &mut Work) {
        self.drop_removed(work);
        let Some((ids, _)) = &self.numbers else { return };
        let mut by_key: HashSet<u32> = HashSet::new();
        for (kind, key) in &work.keys_gone {
            if let Some(identity) = ids.get(key) {
                if *kind == identity_kind::SERVICE {
                    by_key.insert(identity.id);
                }
                self.released.push(Released { key: Some(*key), identity, sweep: self.sweep });
            }
        }
        // Numbers that a service left for another one.
        for id in work.gone.garbage.services.iter().filter(|id| !by_key.contains(id)) {
            let identity = Identity { kind: identity_kind::SERVICE, id: *id };
            self.released.push(Released { key: None, identity, sweep: self.sweep });
        }
        self.garbage.append(std::mem::take(&mut work.gone.garbage));
        self.last = work.desired.clone();
        self.unfinished = false;
        work.stage = Stage::Done;
    }
}

/// The last entries: the vector is emptied from its end.
fn last<T>(all: &mut Vec<T>) -> Vec<T> {
    all.split_off(all.len().saturating_sub(REMOVED))
}

/// Kind and number of a service and all it holds.
fn numbers(image: &ServiceImage) -> impl Iterator<Item = (u32, u32)> + '_ {
    let versions = image.record.versions.iter().take(usize::from(image.record.version_count));
    let versions = versions.chain(image.node.iter().map(|node| &node.versions[0]));
    let backends = image.backends.iter().map(|(id, _)| (identity_kind::BACKEND, *id));
    [(identity_kind::SERVICE, image.id)].into_iter().chain(versions.map(|slot| (identity_kind::VERSION, slot.version))).chain(backends)
}

/// Whether what is known of the ways to an http service's backends is what its record was made with.
fn same_paths(record: &Service, service: &model::Service, mtu: u32, stamps: Option<&HashMap<SocketAddr, bool>>) -> bool {
    record.mss == plan::http::mss(service, mtu) && record.flags & service_flag::STAMPS == plan::http::stamps(service, stamps, record.flags)
}

/// Equal but for where the object stands in its file.
fn unchanged(a: &model::Service, b: &model::Service) -> bool {
    let model::Service {
        name,
        frontends,
        mode,
        split_by,
        versions,
        rules,
        http,
        tls,
        on_weight_change,
        pinned,
        snat,
        path,
        vip,
        rollout: _,
        origin: _,
    } = a;
    *name == b.name
        && *frontends == b.frontends
        && plan::trials::same(a, b)
        && *mode == b.mode
        && *split_by == b.split_by
        && *versions == b.versions
        && *rules == b.rules
        && *http == b.http
        && *tls == b.tls
        && *on_weight_change == b.on_weight_change
        && *pinned == b.pinned
        && *snat == b.snat
        && *path == b.path
        && *vip == b.vip
}

#[cfg(test)]
mod tests;
