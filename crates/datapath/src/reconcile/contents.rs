//! What the tables hold, or shall hold, and the difference. Pure, apart from reading the tables.

use crate::{
    BACKENDS, FRONTENDS, HTTP_RULES, IDS, MAGLEV, RULES, SERVICES, TableError, Tables,
    plan::{Generations, Ids, Key, MaglevTable, ServiceImage},
};
use splitter_common::abi::*;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

/// The entries of the control tables for some services, or for all.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    pub backends: HashMap<u32, Backend>,
    /// Complete tables by version and generation, with their number of chunks.
    pub tables: HashMap<(u32, u32), u32>,
    pub rules: HashMap<RuleKey, u32>,
    pub http: HashMap<u32, Arc<HttpRules>>,
    pub services: HashMap<u32, Service>,
    pub frontends: HashMap<FrontendKey, u32>,
}

impl Contents {
    pub fn add(&mut self, image: &ServiceImage) {
        self.backends.extend(image.backends.iter().copied());
        if image.node.is_none() {
            self.tables.extend(image.tables.iter().map(|t| ((t.version, t.generation), MaglevTable::chunk_count(t.size))));
            self.http.extend(image.http.iter().map(|rules| (image.id, rules.clone())));
        }
        self.rules.extend(image.rules.iter().copied());
        self.services.insert(image.id, *image.kernel());
        self.frontends.extend(image.frontends.iter().map(|frontend| (*frontend, image.id)));
    }
}

/// What has to be written for some services, by stage.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Rows that a record may name soon.
    pub backends: Vec<(u32, Backend)>,
    /// Rows that take something away, or move to a service number that was not there before.
    pub backends_late: Vec<(u32, Backend)>,
    pub tables: Vec<MaglevTable>,
    pub rules: Vec<(RuleKey, u32)>,
    pub http: Vec<(u32, Arc<HttpRules>)>,
    pub services: Vec<(u32, Service)>,
    pub frontends: Vec<(FrontendKey, u32)>,
    /// Services that differ.
    pub touched: Vec<u32>,
}

/// What has to be removed when all is written.
#[derive(Clone, Debug, Default)]
pub struct Gone {
    pub frontends: Vec<FrontendKey>,
    /// Of services that stay.
    pub rules: Vec<RuleKey>,
    /// With their last rows.
    pub backends: Vec<(u32, Backend)>,
    pub garbage: Garbage,
}

/// What nothing names any more, but a packet on its way may still be reading: removed a while later.
#[derive(Clone, Debug, Default)]
pub struct Garbage {
    pub services: Vec<u32>,
    pub rules: Vec<RuleKey>,
    /// Service numbers; of services that stay, too.
    pub http: Vec<u32>,
    /// Version, generation, chunks.
    pub tables: Vec<(u32, u32, u32)>,
}

impl Garbage {
    pub fn append(&mut self, mut other: Garbage) {
        self.services.append(&mut other.services);
        self.rules.append(&mut other.rules);
        self.http.append(&mut other.http);
        self.tables.append(&mut other.tables);
    }

    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.rules.is_empty() && self.http.is_empty() && self.tables.is_empty()
    }

    /// Takes out what belongs to some services' numbers.
    pub fn split_services(&mut self, belongs: impl Fn(u32) -> bool) -> Garbage {
        let services = self.services.extract_if(.., |id| belongs(*id)).collect();
        let rules = self.rules.extract_if(.., |key| belongs(service_of(key))).collect();
        let http = self.http.extract_if(.., |id| belongs(*id)).collect();
        Garbage { services, rules, http, tables: Vec::new() }
    }
}

pub fn service_of(key: &RuleKey) -> u32 {
    u32::from_be_bytes(key.service)
}

impl Changes {
    /// Brings `old` to what `image` says. What `old` holds of it is taken out: what is left in the end has to go.
    pub fn compare(&mut self, old: &mut Contents, image: &ServiceImage) {
        let before = self.len();
        for (id, row) in &image.backends {
            self.backend(old.backends.remove(id), *id, *row);
        }
        // What the userspace tier decides by is nothing to the kernel.
        for table in image.tables.iter().filter(|_| image.node.is_none()) {
            if old.tables.remove(&(table.version, table.generation)).is_none() {
                self.tables.push(table.clone());
            }
        }
        for (key, index) in &image.rules {
            if old.rules.remove(key) != Some(*index) {
                self.rules.push((*key, *index));
            }
        }
        if let Some(rules) = image.http.as_ref().filter(|_| image.node.is_none())
            && old.http.remove(&image.id).as_ref() != Some(rules)
        {
            self.http.push((image.id, rules.clone()));
        }
        if old.services.remove(&image.id) != Some(*image.kernel()) {
            self.services.push((image.id, *image.kernel()));
        }
        for frontend in &image.frontends {
            if old.frontends.remove(frontend) != Some(image.id) {
                self.frontends.push((*frontend, image.id));
            }
        }
        if self.len() > before {
            self.touched.push(image.id);
        }
    }

    fn backend(&mut self, known: Option<Backend>, id: u32, row: Backend) {
        match known {
            Some(known) if known == row => {}
            Some(_) if row.state == backend_state::DOWN => self.backends_late.push((id, row)),
            Some(known) if known.service != row.service => {
                if known.state != row.state {
                    self.backends.push((id, Backend { service: known.service, ..row }));
                }
                self.backends_late.push((id, row));
            }
            _ => self.backends.push((id, row)),
        }
    }

    /// A longer prefix first in: no client ever sees a rule that was hidden before and will be after.
    pub fn in_order(mut self) -> Self {
        self.rules.sort_unstable_by_key(|(key, _)| std::cmp::Reverse(key.prefix_len));
        self
    }

    fn len(&self) -> usize {
        self.backends.len()
            + self.backends_late.len()
            + self.tables.len()
            + self.rules.len()
            + self.http.len()
            + self.services.len()
            + self.frontends.len()
    }
}

impl Gone {
    /// Adds what nothing claimed. `stays`: whether a service's number is in use.
    pub fn add(&mut self, old: Contents, stays: impl Fn(u32) -> bool) {
        self.frontends.extend(old.frontends.into_keys());
        self.backends.extend(old.backends);
        let (rules, rest): (Vec<_>, Vec<_>) = old.rules.into_keys().partition(|key| stays(service_of(key)));
        self.rules.extend(rules);
        self.garbage.rules.extend(rest);
        self.garbage.services.extend(old.services.into_keys());
        self.garbage.http.extend(old.http.into_keys());
        self.garbage.tables.extend(old.tables.into_iter().map(|((version, generation), chunks)| (version, generation, chunks)));
    }
}

/// What the kernel runs, read from its tables.
pub struct Observed {
    pub contents: Contents,
    pub ids: Ids,
    pub generations: Generations,
    /// Tables that nothing names, or that miss chunks.
    pub garbage: Garbage,
}

/// Reads every control table.
pub fn observe(tables: &impl Tables) -> Result<Observed, TableError> {
    let mut contents = Contents::default();
    let mut known: Vec<(Key, Identity)> = Vec::new();
    IDS.each(tables, |key, identity| known.push((key, identity)))?;
    BACKENDS.each(tables, |id, row| {
        if row.state != backend_state::NONE {
            contents.backends.insert(id, row);
        }
    })?;
    RULES.each(tables, |key, index| {
        contents.rules.insert(key, index);
    })?;
    HTTP_RULES.each(tables, |id, rules| {
        contents.http.insert(id, Arc::new(rules));
    })?;
    SERVICES.each(tables, |id, record| {
        contents.services.insert(id, record);
    })?;
    FRONTENDS.each(tables, |key, id| {
        contents.frontends.insert(key, id);
    })?;
    let (generations, garbage) = observe_tables(tables, &mut contents)?;
    let mut services: Vec<u32> = contents.services.keys().chain(contents.frontends.values()).copied().collect();
    services.extend(contents.rules.keys().map(service_of));
    services.extend(contents.http.keys());
    let ids = Ids::new(tables.limit(crate::Table::Counters), tables.limit(crate::Table::Backends), known, &services);
    Ok(Observed { contents, ids, generations, garbage })
}

#[derive(Default)]
struct Seen {
    chunks: u32,
    last: u32,
    members: Vec<u32>,
}

fn observe_tables(tables: &impl Tables, contents: &mut Contents) -> Result<(Generations, Garbage), TableError> {
    let mut seen: HashMap<(u32, u32), Seen> = HashMap::new();
    MAGLEV.each(tables, |key, chunk| {
        let entry = seen.entry((key.version, key.table)).or_default();
        entry.chunks += 1;
        entry.last = entry.last.max(key.chunk);
        for id in chunk.backends {
            if !entry.members.contains(&id) {
                entry.members.push(id);
            }
        }
    })?;
    let (mut generations, mut garbage) = (Generations::default(), Garbage::default());
    let named: HashSet<(u32, u32, u32)> = contents
        .services
        .values()
        .flat_map(|record| record.versions.iter().take(usize::from(record.version_count)))
        .filter(|slot| slot.size > 1)
        .map(|slot| (slot.version, slot.table, MaglevTable::chunk_count(slot.size)))
        .collect();
    let mut keys: Vec<(u32, u32)> = seen.keys().copied().collect();
    // In order of generation: of two that are named, the later one counts.
    keys.sort_unstable();
    for key in keys {
        let Some(entry) = seen.remove(&key) else { continue };
        if named.contains(&(key.0, key.1, entry.chunks)) && entry.last + 1 == entry.chunks {
            generations.in_use(key.0, key.1, entry.members);
            contents.tables.insert(key, entry.chunks);
        } else {
            generations.exists(key.0, key.1);
            garbage.tables.push((key.0, key.1, entry.last + 1));
        }
    }
    Ok((generations, garbage))
}
