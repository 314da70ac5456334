//! The userspace tier as the actor sees it: begins with the first service that needs it, gets what was applied, and is asked what it counted.
//!
//! Its counts go into the kernel's tables, so that whoever reads those reads both; nobody else counts for its versions.

use super::{actor::Actor, counters};
use crate::certificates;
use splitter_common::{
    abi::{HistogramKey, HistogramOctave, MaglevChunk, MaglevKey, VersionCounters, trial::timing},
    histogram::SUBBUCKETS,
};
use splitter_datapath::{
    Kernel, Table, TableError, Tables, bytes_of, node, per_cpu,
    plan::{self, MaglevTable, trials::Timing},
    reconcile::Planned,
};
use splitter_policy::model::{Certificate, Mode};
use splitter_proxy::{
    Backend, Node, Options, Proxy, Service, Snapshot,
    snapshot::{Health, Tls},
    tally::{Accounts, Tally, Terms},
};
use std::{
    collections::HashMap,
    fs,
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

/// Threads, where there are as many CPUs.
const THREADS: usize = 4;
/// Connections at once, where there are descriptors for them and as many to backends.
const CONNECTIONS: usize = 20_000;
/// Requests may go on for so long when the tier ends.
const DRAIN: Duration = Duration::from_secs(5);

/// Identity, size and times of files, as `stat` says behind all links.
type Signature = Vec<Option<[i64; 6]>>;

/// What was read of a service's files.
struct Read {
    signature: Signature,
    tls: Option<Tls>,
}

/// Tables as the decision looks into them, and what they were made of.
type Built = (Vec<MaglevTable>, Arc<HashMap<MaglevKey, MaglevChunk>>);

/// See the module.
#[derive(Default)]
pub(super) struct Proxied {
    proxy: Option<Proxy>,
    /// Those that let their last requests end.
    ending: Vec<JoinHandle<()>>,
    /// By the files that a service names, in its order.
    read: HashMap<Vec<Certificate>, Read>,
    tables: HashMap<String, Built>,
    health: HashMap<(u32, SocketAddr), Arc<Health>>,
}

struct Known(Kernel);

impl Node for Known {
    fn destination(&self, local: SocketAddr, client: SocketAddr) -> Option<SocketAddr> {
        node::destination(&self.0, local, client).unwrap_or_else(|error| {
            tracing::error!(%error, "whose a connection is");
            None
        })
    }
}

impl Actor {
    /// Begins the tier when the services that are wanted need it. Before the kernel sends anybody.
    pub(super) fn begin_proxy(&mut self) -> Result<(), String> {
        let wanted = self.desired.services.iter().any(|service| service.mode == Mode::Https);
        let Some(datapath) = self.datapath.as_ref().filter(|_| wanted && self.proxied.proxy.is_none()) else { return Ok(()) };
        let listen = node::add_addresses()
            .map_err(|error| format!("cannot give the loopback interface an address for the userspace tier: {error}"))?;
        let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS);
        let connections = descriptors().map_or(CONNECTIONS, |most| (most / 2).min(CONNECTIONS));
        let options = Options { listen, threads, connections, drain: DRAIN };
        let started = Proxy::start(&options, Arc::new(Known(datapath.tables.clone())));
        let proxy = started.map_err(|error| format!("cannot listen on the userspace tier's private addresses: {error}"))?;
        tracing::info!(threads, "the userspace tier begins");
        self.proxied.proxy = Some(proxy);
        Ok(())
    }

    /// Tells the tier what is applied. Whoever has applied something calls it.
    pub(super) fn publish_proxy(&mut self) {
        let Proxied { proxy: Some(proxy), read, tables, health, .. } = &mut self.proxied else { return };
        let mut snapshot = Snapshot::default();
        let https = || self.reconciler.services().filter(|planned| planned.model.mode == Mode::Https);
        for planned in https() {
            let terms = terms(planned, self.reconciler.timing(&planned.model), self.reconciler.ticks_per_second());
            let service = Arc::new(service(planned, terms, proxy.tallies(), read, tables, health));
            snapshot.services.extend(planned.model.frontends.iter().map(|frontend| (frontend.address, service.clone())));
        }
        proxy.publish(snapshot);
        let used = |health: &Arc<Health>| Arc::strong_count(health) > 1;
        health.retain(|_, health| used(health));
        tables.retain(|name, _| self.reconciler.service(name).is_some_and(|planned| planned.model.mode == Mode::Https));
        read.retain(|pairs, _| https().any(|planned| planned.model.tls.as_ref().is_some_and(|tls| tls.certificates == *pairs)));
    }

    /// Ends the tier when nothing needs it any more.
    pub(super) fn leave_proxy(&mut self) {
        self.proxied.ending.retain(|thread| !thread.is_finished());
        if self.reconciler.services().any(|planned| planned.model.mode == Mode::Https) {
            return;
        }
        self.note_tallies();
        if let Some(proxy) = self.proxied.proxy.take() {
            tracing::info!("the userspace tier ends: no service needs it");
            self.proxied.ending.push(thread::spawn(move || proxy.end()));
        }
    }

    /// Lets the last requests end, with the agent.
    pub(super) fn end_proxy(&mut self) {
        let Some(proxy) = self.proxied.proxy.take() else { return };
        let tallies = proxy.tallies().clone();
        proxy.end();
        self.write_tallies(&tallies);
    }

    /// Reads certificates anew whose files have changed. What is wrong leaves the old ones.
    pub(super) fn look_at_certificates(&mut self) {
        if self.proxied.proxy.is_none() {
            return;
        }
        let mut changed = false;
        let https = self.reconciler.services().filter(|planned| planned.model.mode == Mode::Https);
        for planned in https {
            let Some(tls) = &planned.model.tls else { continue };
            let Some(known) = self.proxied.read.get_mut(&tls.certificates) else { continue };
            let signature = signature(&tls.certificates);
            if signature == known.signature {
                continue;
            }
            known.signature = signature;
            match certificates::load(&planned.model) {
                Ok(tls) => {
                    tracing::info!(service = planned.model.name, "certificates read anew");
                    known.tls = Some(tls);
                    changed = true;
                }
                Err(error) => tracing::warn!(service = planned.model.name, "certificates stay as they were: {error}"),
            }
        }
        if changed {
            self.publish_proxy();
        }
    }

    /// Adds what the tier has counted to the kernel's tables.
    pub(super) fn note_tallies(&mut self) {
        let Some(tallies) = self.proxied.proxy.as_ref().map(|proxy| proxy.tallies().clone()) else { return };
        self.write_tallies(&tallies);
    }

    fn write_tallies(&mut self, tallies: &Accounts) {
        let Some(datapath) = &mut self.datapath else { return };
        for (version, tally) in tallies.take() {
            if let Err(error) = note(&mut datapath.tables, version, &tally) {
                tracing::error!(%error, "what the userspace tier has counted is lost");
            }
        }
    }
}

fn service(
    planned: &Planned,
    terms: Terms,
    accounts: &Accounts,
    read: &mut HashMap<Vec<Certificate>, Read>,
    tables: &mut HashMap<String, Built>,
    health: &mut HashMap<(u32, SocketAddr), Arc<Health>>,
) -> Service {
    let image = &planned.image;
    let pairs = planned.model.tls.as_ref().map(|tls| tls.certificates.clone()).unwrap_or_default();
    let read = read.entry(pairs).or_insert_with_key(|pairs| Read {
        signature: signature(pairs),
        tls: certificates::load(&planned.model)
            .inspect_err(|error| tracing::error!(service = planned.model.name, "nobody is served: {error}"))
            .ok(),
    });
    let built = tables.entry(planned.model.name.clone()).or_default();
    if built.0 != image.tables {
        *built = (image.tables.clone(), Arc::new(image.tables.iter().flat_map(MaglevTable::chunks).collect()));
    }
    let backends = image.backends.iter().filter(|(_, row)| !image.is_node(row)).map(|(id, row)| {
        let address = SocketAddr::new(plan::ip(&row.addr), u16::from_be_bytes(row.port));
        let health = health.entry((*id, address)).or_default().clone();
        (*id, Backend { address, version: row.version, state: row.state, health })
    });
    let slots = &image.record.versions[..usize::from(image.record.version_count)];
    Service {
        id: image.id,
        record: image.record,
        rules: image.http.clone(),
        backends: backends.collect(),
        tables: built.1.clone(),
        accounts: slots.iter().map(|slot| (slot.version, accounts.of(slot.version))).collect(),
        terms,
        tls: read.tls.clone(),
    }
}

fn terms(planned: &Planned, Timing { bits, unanswered }: Timing, ticks_per_second: u32) -> Terms {
    let after = Duration::from_secs_f64(f64::from(unanswered) / f64::from(ticks_per_second.max(1)));
    let of = |kind| (unanswered > 0 && bits & kind != 0).then_some(after);
    Terms {
        unanswered: [of(timing::DRAWN), of(timing::RULED)],
        failing: (bits & timing::CODES != 0).then_some(planned.image.record.failing),
    }
}

fn signature(pairs: &[Certificate]) -> Signature {
    let of = |path: &Path| {
        let about = fs::metadata(path).ok()?;
        Some([about.dev() as i64, about.ino() as i64, about.size() as i64, about.mtime(), about.mtime_nsec(), about.ctime_nsec()])
    };
    pairs.iter().flat_map(|pair| [of(&pair.cert_file), of(&pair.key_file)]).collect()
}

/// The most descriptors that this process may have.
fn descriptors() -> Option<usize> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the place lives for the call, and is of the type that the kernel fills.
    let done = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    (done == 0).then_some(limit.rlim_cur.try_into().unwrap_or(usize::MAX))
}

/// Adds to the values of the first CPU.
fn note(tables: &mut impl Tables, version: u32, tally: &Tally) -> Result<(), TableError> {
    let mut values: Vec<VersionCounters> = per_cpu(tables, Table::Counters, version)?;
    if let Some(first) = values.first_mut() {
        counters::add(first, &tally.counters);
        tables.put(Table::Counters, bytes_of(&[version]), bytes_of(&values))?;
    }
    for (key, counts) in &tally.samples {
        let mut octaves: Vec<[u32; SUBBUCKETS as usize]> =
            per_cpu::<HistogramKey, HistogramOctave>(tables, Table::Histograms, *key)?.into_iter().map(|octave| octave.counts).collect();
        if let Some(first) = octaves.first_mut() {
            first.iter_mut().zip(counts).for_each(|(total, count)| *total = total.saturating_add(*count));
            let octaves: Vec<HistogramOctave> = octaves.into_iter().map(|counts| HistogramOctave { counts }).collect();
            tables.put(Table::Histograms, bytes_of(&[*key]), bytes_of(&octaves))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use splitter_common::{
        abi::{Measure, Outcomes},
        histogram,
    };
    use splitter_datapath::Memory;

    #[test]
    fn what_the_tier_counts_is_added_to_the_kernels() {
        let mut tables = Memory::new();
        let mut tally = Tally::default();
        tally.counters.requests = 3;
        tally.counters.drawn = Outcomes { trials: 3, answered: 2, closed: 1, ..Outcomes::default() };
        let (octave, sub) = histogram::locate(1_000_000);
        let mut counts = [0; SUBBUCKETS as usize];
        counts[sub as usize] = 2;
        tally.samples.insert(HistogramKey::new(5, Measure::FirstByte, false, octave), counts);
        for _ in 0..2 {
            note(&mut tables, 5, &tally).unwrap();
        }
        let found = counters::of_version(&tables, 5).unwrap();
        assert_eq!((found.requests, found.drawn.trials, found.drawn.answered, found.drawn.closed), (6, 6, 4, 2));
        let samples = counters::histogram(&tables, 5, Measure::FirstByte, counters::EVERYBODY).unwrap();
        assert_eq!(samples.samples().map(|(_, _, count)| count).sum::<u64>(), 4);
    }
}
