//! The looks: ten times a second the counters of all rollouts that run are read, and those take a step that have anything new.
//!
//! A rollout whose counters did not move takes one step a second, for what happens by time alone; how long nothing was seen counts all the same.
//! Decides nothing: [`Actor::step`] feeds the step function.

use super::{
    Entry,
    errands::Answered,
    sample::{FEW, Sampler, Watch},
};
use crate::control::{actor::Actor, status};
use splitter_datapath::Tables;
use splitter_policy::model::Measure;
use splitter_rollout::{LatencySamples, Observation, Reading, State, Traffic, stats::Counts};
use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// Looks are made rarer when they cost more than this part of one CPU.
const BUDGET: f64 = 0.0095;
/// Time between two steps of a rollout that nothing happens to.
const IDLE: Duration = Duration::from_secs(1);
/// Time between two looks at histograms, with few and with many versions.
const LATENCY: Duration = Duration::from_secs(1);
const LATENCY_MANY: Duration = Duration::from_secs(5);
/// An answer that does not come this long after its question's time is over is lost.
const GRACE: Duration = Duration::from_secs(1);
/// Part of the newest figure in what is shown of cost and pace.
const SMOOTH: f64 = 0.1;

type Samples = HashMap<(u32, Measure), Counts>;

/// When looks are made, and what each one goes through.
pub(super) struct Rounds {
    sampler: Sampler,
    /// One for each entry, in the same order.
    spots: Vec<Spot>,
    /// Entries came or went, began or ended, since `spots` was made; of which layout it is.
    stale: bool,
    layout: u64,
    /// Some entry needs looks.
    active: bool,
    next: Instant,
    looked: Instant,
    sampled: Instant,
    histograms_due: Instant,
    /// Seconds of CPU that a look costs, and seconds between two, smoothed.
    cost: f64,
    pause: f64,
}

/// What the rounds know of one rollout: little, because all are gone through ten times a second and few have anything new.
struct Spot {
    service: String,
    active: bool,
    /// A step is due, whatever the counters say.
    soon: bool,
    watched: Option<Watched>,
    /// Until when its traffic was taken.
    taken: Instant,
    stepped: Instant,
    /// When the next external gate is asked.
    ask: Option<Instant>,
}

/// Versions of one service that are read: slots of the sampler.
struct Watched {
    canary: usize,
    baseline: usize,
    /// All versions of the service, where the share is judged.
    all: Vec<usize>,
    /// Numbers of canary and baseline.
    numbers: [u32; 2],
    measures: Vec<Measure>,
}

impl Rounds {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            sampler: Sampler::default(),
            spots: Vec::new(),
            stale: true,
            layout: 0,
            active: true,
            next: now,
            looked: now,
            sampled: now,
            histograms_due: now + LATENCY,
            cost: 0.0,
            pause: LOOK.as_secs_f64(),
        }
    }

    /// Seconds of CPU that a look costs, and seconds between two.
    pub(super) fn pace(&self) -> (f64, f64) {
        (self.cost, self.pause)
    }

    pub(super) fn due(&self) -> Option<Instant> {
        (self.active || self.stale).then_some(self.next)
    }

    /// Entries came or went, or were spoken to.
    pub(super) fn changed(&mut self) {
        self.stale = true;
    }

    /// Notes that a look begins; when the next one is due follows from what they cost.
    fn begin(&mut self, now: Instant) {
        let pause = LOOK.as_secs_f64().max(self.cost / BUDGET);
        // After a time without looks nothing is made up for.
        let since = now.duration_since(self.looked).as_secs_f64().min(10.0 * pause);
        self.pause += SMOOTH * (since - self.pause);
        self.looked = now;
        let next = self.next + Duration::from_secs_f64(pause);
        self.next = if next > now { next } else { now + Duration::from_secs_f64(pause) };
    }

    /// Whether anything is active, after a look.
    fn end(&mut self, cost: f64) {
        self.active = self.spots.iter().any(|spot| spot.active);
        self.cost += SMOOTH * (cost - self.cost);
    }

    /// Reads counters, and histograms when it is time for them. Whether there are counters, and new samples with the seconds that they stand for.
    /// `ticks`: the kernel's clock.
    fn read(&mut self, tables: &impl Tables, ticks: u32, now: Instant) -> (bool, Option<(f64, Samples)>) {
        let counted = self.sampler.look(tables, ticks).inspect_err(|error| tracing::error!(%error, "rollouts see no counters")).is_ok();
        if now < self.histograms_due {
            return (counted, None);
        }
        let keys = |watched: &Watched| {
            let (numbers, measures) = (watched.numbers, watched.measures.clone());
            measures.into_iter().flat_map(move |measure| numbers.map(|number| (number, measure)))
        };
        let wanted: Vec<(u32, Measure)> = self.spots.iter().filter_map(|spot| spot.watched.as_ref()).flat_map(keys).collect();
        if wanted.is_empty() {
            return (counted, None);
        }
        self.histograms_due = now + if wanted.len() > FEW { LATENCY_MANY } else { LATENCY };
        let since = now.duration_since(std::mem::replace(&mut self.sampled, now)).as_secs_f64();
        let samples = self.sampler.histograms(tables, &wanted).inspect_err(|error| tracing::error!(%error, "rollouts see no histograms"));
        (counted, samples.ok().map(|samples| (since, samples)))
    }
}

impl Spot {
    fn moved(&self, sampler: &Sampler) -> bool {
        let moved = |watched: &Watched| {
            sampler.moved(watched.canary) || sampler.moved(watched.baseline) || watched.all.iter().any(|slot| sampler.moved(*slot))
        };
        self.watched.as_ref().is_some_and(moved)
    }

    fn is_due(&self, now: Instant) -> bool {
        self.soon || now.duration_since(self.stepped) >= IDLE || self.ask.is_some_and(|at| at <= now)
    }
}

impl Watched {
    /// `None` until both versions were seen twice.
    fn traffic(&self, sampler: &Sampler, seconds: f64) -> Option<Traffic> {
        let ((canary, drawn), (baseline, others)) = (sampler.side(self.canary)?, sampler.side(self.baseline)?);
        let all = match self.all.as_slice() {
            [] => drawn + others,
            slots => slots.iter().filter_map(|slot| Some(sampler.side(*slot)?.1)).sum(),
        };
        Some(Traffic { seconds, canary, baseline, drawn, all })
    }

    fn latency(&self, samples: &Samples, seconds: f64) -> LatencySamples {
        let of = |number: u32, measure: Measure| samples.get(&(number, measure)).cloned().unwrap_or_default();
        let by_measure = self.measures.iter().map(|measure| (*measure, self.numbers.map(|number| of(number, *measure))));
        LatencySamples { seconds, by_measure: by_measure.collect() }
    }
}

impl Actor {
    /// One look at every rollout that runs.
    pub(in crate::control) fn look_at_rollouts(&mut self) {
        let (now, used) = (Instant::now(), cpu_time());
        self.note_tallies();
        // Taken out, so that acting can use the rest of the actor; nothing looks at them meanwhile.
        let mut rounds = std::mem::replace(&mut self.rollouts.rounds, Rounds::new());
        rounds.begin(now);
        let mut readings = self.new_readings();
        let mut entries = std::mem::take(&mut self.rollouts.entries);
        if rounds.stale || rounds.layout != self.layout {
            self.find_spots(&mut rounds, &entries, now);
        }
        let ticks = self.clock().map(|clock| clock.ticks).inspect_err(|error| tracing::error!(%error, "rollouts see no clock"));
        let (counted, samples) = match (&self.datapath, ticks) {
            (Some(datapath), Ok(ticks)) => rounds.read(&datapath.tables, ticks, now),
            _ => (false, None),
        };
        let Rounds { sampler, spots, stale, .. } = &mut rounds;
        for (spot, (name, entry)) in spots.iter_mut().zip(&mut entries).filter(|(spot, _)| spot.active) {
            let answers = if readings.is_empty() { None } else { readings.remove(name) };
            let moved = counted && spot.moved(sampler);
            let latency = samples.as_ref().zip(spot.watched.as_ref().filter(|watched| !watched.measures.is_empty()));
            if !moved && latency.is_none() && answers.is_none() && !spot.is_due(now) {
                continue;
            }
            let traffic = spot.watched.as_ref().filter(|_| counted).map(|watched| {
                let seconds = now.duration_since(std::mem::replace(&mut spot.taken, now)).as_secs_f64();
                watched.traffic(sampler, seconds)
            });
            answers.iter().flatten().for_each(|answer| entry.answered(&answer.gate));
            entry.news |= moved;
            let judged = entry.state.is_judged();
            let observation = Observation {
                traffic: traffic.flatten(),
                latency: latency.map(|((seconds, samples), watched)| watched.latency(samples, *seconds)),
                readings: answers.unwrap_or_default(),
                ..Observation::default()
            };
            self.step(name, entry, observation, now);
            spot.ask = self.ask_external(name, entry, now);
            spot.stepped = now;
            (spot.active, spot.soon) = (entry.needs_looks(), entry.is_unsure(self.layout));
            *stale |= judged != entry.state.is_judged();
        }
        self.rollouts.entries = entries;
        rounds.end(cpu_time() - used);
        self.rollouts.rounds = rounds;
    }

    /// Finds what is read of each rollout.
    fn find_spots(&self, rounds: &mut Rounds, entries: &BTreeMap<String, Entry>, now: Instant) {
        (rounds.stale, rounds.layout) = (false, self.layout);
        let mut known: HashMap<String, Spot> = rounds.spots.drain(..).map(|spot| (spot.service.clone(), spot)).collect();
        let numbers: Vec<Option<Vec<Watch>>> =
            entries.values().map(|entry| self.numbers(&entry.state).filter(|_| entry.state.is_judged())).collect();
        rounds.sampler.watch(numbers.iter().flatten().flatten().copied().collect());
        let spot = |((name, entry), numbers): ((&String, &Entry), Option<Vec<Watch>>)| {
            let old = known.remove(name);
            let watched = numbers.and_then(|numbers| Self::watched(&entry.state, &numbers, &rounds.sampler));
            // Time that nobody looked in counts for nothing.
            let taken = old.as_ref().filter(|old| old.watched.is_some() && watched.is_some()).map_or(now, |old| old.taken);
            Spot {
                service: name.clone(),
                active: entry.needs_looks(),
                soon: entry.is_unsure(self.layout),
                watched,
                taken,
                stepped: old.map_or(now, |old| old.stepped),
                ask: (!entry.state.policy.gates.external.is_empty()).then_some(now),
            }
        };
        rounds.spots = entries.iter().zip(numbers).map(spot).collect();
    }

    /// Numbers of a rollout's versions: the canary's, the baseline's, and where the share is judged those of the whole service.
    fn numbers(&self, state: &State) -> Option<Vec<Watch>> {
        let planned = self.reconciler.service(&state.service)?;
        // As the kernel was told.
        let timing = self.reconciler.timing(&planned.model);
        let watch = |version: u32| Watch { version, judge: state.policy.judge, timing };
        let numbers: Vec<Watch> = status::versions(planned).map(watch).collect();
        let number = |wanted: &str| planned.model.versions.iter().position(|version| version.name == wanted).map(|index| numbers[index]);
        let mut wanted = vec![number(&state.canary)?, number(&state.baseline)?];
        if state.policy.gates.share.is_some() {
            wanted.extend(numbers);
        }
        Some(wanted)
    }

    /// `numbers`: as [`Actor::numbers`] says, all watched by the sampler.
    fn watched(state: &State, numbers: &[Watch], sampler: &Sampler) -> Option<Watched> {
        let [canary, baseline, all @ ..] = numbers else { return None };
        let mut measures: Vec<Measure> = state.policy.gates.latency.iter().map(|gate| gate.measure).collect();
        measures.sort_unstable();
        measures.dedup();
        Some(Watched {
            canary: sampler.slot(canary.version)?,
            baseline: sampler.slot(baseline.version)?,
            all: all.iter().filter_map(|watch| sampler.slot(watch.version)).collect(),
            numbers: [canary.version, baseline.version],
            measures,
        })
    }

    /// Asks the external gates whose time has come; when it is time for the next one.
    fn ask_external(&mut self, name: &str, entry: &mut Entry, now: Instant) -> Option<Instant> {
        if !entry.state.is_judged() || entry.state.policy.gates.external.is_empty() {
            return None;
        }
        for gate in &entry.state.policy.gates.external {
            let (due, asked) = entry.due.entry(gate.name.clone()).or_insert((now, None));
            // Never two at once.
            if now < *due || asked.is_some_and(|until| now < until) {
                continue;
            }
            (*due, *asked) = (now + gate.every, Some(now + gate.timeout + GRACE));
            tracing::debug!(service = name, gate = gate.name, "asked");
            self.rollouts.errands.ask(gate.clone(), self.subject(&entry.state), entry.state.began);
        }
        entry.due.values().map(|(due, asked)| asked.map_or(*due, |until| until.max(*due))).min()
    }

    fn new_readings(&self) -> HashMap<String, Vec<Reading>> {
        let mut readings: HashMap<String, Vec<Reading>> = HashMap::new();
        for Answered { service, began, reading } in self.rollouts.errands.answered() {
            if self.rollouts.entries.get(&service).is_some_and(|entry| entry.state.began == began) {
                readings.entry(service).or_default().push(reading);
            }
        }
        readings
    }
}

/// Seconds of CPU that this thread has used: on a busy machine a look takes longer than it costs.
fn cpu_time() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
