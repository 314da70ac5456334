//! What the last reading found in each document, so that a policy of which little has changed is read in little time.
//!
//! Owns the memory of one watched policy. Only documents without any finding are remembered, and whatever is not plain is left to the reading
//! of the whole: what comes out is the same.

use super::{Outcome, Report, check, decode, files::Snapshot, outcome, yaml};
use crate::model::{Policy, Service};
use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher, RandomState},
    path::Path,
    sync::Arc,
    thread,
};

/// Documents that are worth a thread.
const SHARE: usize = 1024;
/// Threads that read at the same time, at most.
const READERS: usize = 4;

/// See the module.
#[derive(Debug, Default)]
pub struct Known {
    /// Random, so that nobody can write two documents that are taken for one.
    hasher: RandomState,
    /// By hash of the file's name and the document's text: where it began, and what it says.
    documents: HashMap<u64, (u32, Arc<Service>)>,
}

/// A document that is not known.
struct Fresh<'a> {
    index: usize,
    file: &'a str,
    line: u32,
    text: &'a str,
    hash: u64,
}

/// What a document says.
#[derive(Default)]
struct Read {
    services: Vec<Arc<Service>>,
    report: Report,
}

impl Known {
    /// As [`outcome`], and remembers it.
    pub fn outcome(&mut self, path: &Path, snapshot: &Snapshot) -> Outcome {
        self.read(snapshot).unwrap_or_else(|| {
            let outcome = outcome(path, snapshot);
            if outcome.result.is_ok() {
                self.documents = HashMap::new();
            }
            outcome
        })
    }

    /// `None` when it has to be read as a whole.
    fn read(&mut self, snapshot: &Snapshot) -> Option<Outcome> {
        if !snapshot.errors.is_empty() {
            return None;
        }
        let (mut services, mut documents, mut fresh) = (Vec::new(), HashMap::with_capacity(self.documents.len()), Vec::new());
        let mut objects = vec![0; snapshot.files.len()];
        for (index, file) in snapshot.files.iter().enumerate() {
            for (line, text) in yaml::parts(std::str::from_utf8(&file.content).ok()?)? {
                let hash = self.hasher.hash_one((&file.name, text));
                match self.documents.get(&hash) {
                    Some((known, service)) => {
                        let service = if *known == line { service.clone() } else { Arc::new(moved(service, *known, line)) };
                        documents.insert(hash, (line, service.clone()));
                        services.push(service);
                        objects[index] += 1;
                    }
                    None => fresh.push(Fresh { index, file: &file.name, line, text, hash }),
                }
            }
        }
        let mut warnings = Vec::new();
        for (fresh, read) in fresh.iter().zip(read_all(&fresh)) {
            let Read { services: found, report } = read?;
            if let ([service], []) = (&found[..], &report.warnings[..]) {
                documents.insert(fresh.hash, (fresh.line, service.clone()));
            }
            objects[fresh.index] += found.len();
            services.extend(found);
            warnings.extend(report.warnings);
        }
        // Whether a file that says nothing is wrong depends on the others; that nothing at all says anything always is.
        if services.is_empty() || objects.contains(&0) {
            return None;
        }
        services.sort_by(|a, b| a.name.cmp(&b.name));
        if !is_valid(&services) {
            return None;
        }
        warnings.sort_by(|a, b| (&a.path, a.at).cmp(&(&b.path, b.at)));
        self.documents = documents;
        Some(Outcome { result: Ok(Policy { services }), warnings })
    }
}

/// Names and frontends are unique.
fn is_valid(services: &[Arc<Service>]) -> bool {
    let mut frontends = HashSet::with_capacity(services.len());
    services.is_sorted_by(|a, b| a.name < b.name) && services.iter().flat_map(|service| &service.frontends).all(|f| frontends.insert(f))
}

/// In the order of the documents; `None` for one that says more than services.
fn read_all(fresh: &[Fresh<'_>]) -> Vec<Option<Read>> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(READERS).min(fresh.len() / SHARE).max(1);
    if threads == 1 {
        return fresh.iter().map(read_one).collect();
    }
    thread::scope(|scope| {
        let share = fresh.len().div_ceil(threads);
        let readers: Vec<_> = fresh.chunks(share).map(|part| scope.spawn(|| part.iter().map(read_one).collect::<Vec<_>>())).collect();
        let all = readers.into_iter().map(|reader| reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        all.flatten().collect()
    })
}

fn read_one(fresh: &Fresh<'_>) -> Option<Read> {
    let (mut drafts, mut report, mut emptied) = (Vec::new(), Report::default(), false);
    let errors = yaml::documents_at(fresh.text, fresh.line, |document| {
        emptied |= decode::document(fresh.file, &document, &mut drafts, &mut report);
    });
    if emptied || !errors.is_empty() || !report.errors.is_empty() {
        return None;
    }
    drafts.iter().for_each(|draft| check::alone(draft, &mut report));
    // A copy has no room for more: what is made bit by bit takes half as much again.
    let services = drafts.iter().filter_map(|draft| draft.service.clone()).map(Arc::new).collect();
    Some(Read { services, report })
}

/// The same service, some lines further down or up.
fn moved(service: &Service, from: u32, to: u32) -> Service {
    let line = |line: u32| line.wrapping_sub(from).wrapping_add(to);
    let mut service = service.clone();
    let mut origin = service.origin.rsplitn(3, ':');
    if let (Some(column), Some(at), Some(file)) = (origin.next(), origin.next().and_then(|at| at.parse().ok()), origin.next()) {
        service.origin = format!("{file}:{}:{column}", line(at));
    }
    for rule in service.http.iter_mut().flat_map(|http| &mut http.rules) {
        rule.line = line(rule.line);
    }
    service
}

#[cfg(test)]
mod tests;
