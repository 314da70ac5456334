//! The actor behind [`super::Control`]: takes requests, timers and interface changes one after the other, on a thread of its own.

use super::{
    ControlError, Loaded, Settings,
    applying::Applying,
    hold::Hold,
    look::Attachments,
    path::Course,
    proxied::Proxied,
    rates::Rates,
    rollouts::Rollouts,
    snapshot::Snapshot,
    stamps::Stamps,
    store::{Runtime, Store, StoreError},
    sweep::{Clock, Janitor},
    trace::{Reader, Tracing},
};
use splitter_api::{
    ExplainRequest, Explanation, RolloutEvent, RolloutStatus, Status, TraceEvent, TraceRequest, WeightChange, WeightRequest,
};
use splitter_datapath::{
    Datapath, DatapathError, Events, Patterns, Sizes,
    reconcile::{Applied, Reconciler, Services},
};
use splitter_policy::model::Service;
use splitter_rollout::Word;
use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::sync::{mpsc, oneshot};

/// A request, with where the answer goes.
#[derive(Debug)]
pub enum Message {
    Load(Loaded, oneshot::Sender<()>),
    /// After a sweep, when the last one is not fresh.
    Status(oneshot::Sender<Snapshot>),
    Flows(oneshot::Sender<Result<Snapshot, ControlError>>),
    /// What is in force.
    Policy(oneshot::Sender<Result<Applied, ControlError>>),
    Brief(oneshot::Sender<Status>),
    Trace(TraceRequest, oneshot::Sender<Result<Reader, ControlError>>),
    Waiting(TraceRequest, oneshot::Sender<Result<Vec<TraceEvent>, ControlError>>),
    Explain(ExplainRequest, oneshot::Sender<Result<Explanation, ControlError>>),
    SetWeights(String, WeightRequest, String, oneshot::Sender<Result<WeightChange, ControlError>>),
    Rollouts(oneshot::Sender<Result<Vec<RolloutStatus>, ControlError>>),
    Rollout(String, oneshot::Sender<Result<RolloutStatus, ControlError>>),
    RolloutHistory(String, oneshot::Sender<Result<Vec<RolloutEvent>, ControlError>>),
    RolloutWord(String, Word, oneshot::Sender<Result<RolloutStatus, ControlError>>),
    Shutdown(oneshot::Sender<()>),
}

/// Drains are looked at this often; every fifth time the flow tables are swept and a failed apply is tried again.
const TICK: Duration = Duration::from_secs(1);
const TICKS_PER_SWEEP: u32 = 5;
/// Every second time the kernel is asked whether everything is still attached.
const TICKS_PER_LOOK: u32 = 2;
/// Interface changes come in bursts: one look after this long.
const SETTLE: Duration = Duration::from_millis(20);
/// Flow counts in the status are not older than this.
pub(super) const FRESH: Duration = Duration::from_secs(1);
pub(super) const NO_MAPS: &str = "the kernel's maps could not be made: see `splitter status`";

/// The thread: starts, says so, and serves until the end.
///
/// `outside`: where what asks others runs.
pub fn run(
    settings: Settings,
    hold: Hold,
    receiver: mpsc::Receiver<Message>,
    ready: oneshot::Sender<anyhow::Result<()>>,
    outside: tokio::runtime::Handle,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = ready.send(Err(error.into()));
            return;
        }
    };
    runtime.block_on(async {
        match Actor::start(settings, hold, outside) {
            Ok((actor, events)) => {
                // Nobody waits any more when the program is ending.
                let _ = ready.send(Ok(()));
                actor.serve(receiver, events).await;
            }
            Err(error) => {
                let _ = ready.send(Err(error));
            }
        }
    });
}

/// What the source last said.
#[derive(Default)]
pub(super) struct Desired {
    /// As read, without overrides; the last one that was accepted.
    pub(super) services: Services,
    pub(super) read: f64,
    pub(super) state: &'static str,
    pub(super) errors: Vec<String>,
    pub(super) warnings: Vec<String>,
    pub(super) failing_lookups: usize,
}

pub struct Actor {
    pub(super) settings: Settings,
    pub(super) hold: Hold,
    pub(super) attachments: Attachments,
    pub(super) patterns: Patterns,
    /// `None` only while the maps are made anew.
    pub(super) datapath: Option<Datapath>,
    pub(super) reconciler: Reconciler,
    /// What is being applied.
    pub(super) applying: Option<Applying>,
    pub(super) janitor: Janitor,
    pub(super) store: Store,
    pub(super) runtime: Runtime,
    pub(super) desired: Desired,
    pub(super) applied: splitter_api::Applied,
    /// Grows whenever services were applied: numbers, backends and weights of any of them may have changed.
    pub(super) layout: u64,
    pub(super) started: f64,
    /// Maps that this process made and nothing was put in: they can be made larger.
    pub(super) empty: bool,
    pub(super) swept: Instant,
    /// Who asked for a status and waits for the sweep's end.
    pub(super) waiting: Vec<oneshot::Sender<Snapshot>>,
    /// The clock of the rates.
    pub(super) begin: Instant,
    pub(super) rates: Rates,
    pub(super) rollouts: Rollouts,
    pub(super) stamps: Stamps,
    pub(super) tracing: Tracing,
    pub(super) course: Course,
    pub(super) proxied: Proxied,
}

pub(super) fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

impl Actor {
    fn start(mut settings: Settings, hold: Hold, outside: tokio::runtime::Handle) -> anyhow::Result<(Self, Events)> {
        let patterns = Patterns::parse(&settings.interfaces)?;
        let store = Store::open(&settings.state)?;
        let stamps = Stamps::new(settings.timestamps.then(|| outside.clone()));
        let rollouts = Rollouts::open(&settings.state, outside)?;
        let said = settings.policy.take();
        let restored = |store: &Store| {
            store.policy().unwrap_or_else(|error| {
                tracing::error!(%error, "the last good policy cannot be restored; what the kernel runs stays");
                None
            })
        };
        let first = said.clone().or_else(|| restored(&store));
        let (has_policy, had_state) = (first.is_some(), store.has_runtime());
        let runtime = store.runtime().unwrap_or_else(|error| {
            tracing::error!(%error, "weights set by the command line cannot be restored");
            Runtime::default()
        });
        let pins = splitter_datapath::directory(settings.pins.as_deref(), true)?;
        // Before the first look, so that no change is missed in between.
        let events = Events::subscribe().map_err(DatapathError::Netlink)?;
        let sizes = sizes(&settings, first.as_deref().map_or(&[], |services| services));
        let datapath = Datapath::open(&pins, sizes)?;
        let empty = !datapath.adopted();
        let applied = splitter_api::Applied { generation: runtime.generation, ..splitter_api::Applied::default() };
        let mut actor = Self {
            settings,
            hold,
            attachments: Attachments::default(),
            patterns,
            datapath: Some(datapath),
            reconciler: Reconciler::new(),
            applying: None,
            janitor: Janitor::default(),
            store,
            runtime,
            desired: Desired { state: "pending", ..Desired::default() },
            applied,
            layout: 0,
            started: unix_now(),
            empty,
            swept: Instant::now(),
            waiting: Vec::new(),
            begin: Instant::now(),
            rates: Rates::default(),
            rollouts,
            stamps,
            tracing: Tracing::default(),
            course: Course::default(),
            proxied: Proxied::default(),
        };
        actor.reconciler.set_stamps(actor.stamps.said());
        actor.reconciler.set_ticks_per_second(actor.clock()?.ticks_per_second);
        actor.follow_firewall();
        if let Some(services) = first {
            actor.desired.services = services;
            if !actor.empty {
                actor.meet_kernel(had_state);
            }
            actor.apply(false);
        }
        if said.is_some()
            && actor.applied.error.is_some()
            && let Some(services) = restored(&actor.store)
        {
            actor.desired.services = services;
            actor.apply(false);
        }
        if has_policy && actor.applied.error.is_none() {
            actor.programs_may_come();
        }
        // Tables first, programs afterwards: the first packet meets a whole policy.
        actor.look_at_interfaces()?;
        actor.follow_mtu();
        Ok((actor, events))
    }

    /// The tables hold a whole policy.
    fn programs_may_come(&mut self) {
        let Some(datapath) = &mut self.datapath else { return };
        let renewed = datapath.renewed();
        if !renewed.is_empty() {
            let maps = renewed.join(" ");
            tracing::info!(maps, "made anew beside those of the agent before, which had other layouts; connections are kept");
        }
        datapath.filled();
    }

    async fn serve(mut self, mut receiver: mpsc::Receiver<Message>, mut events: Events) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut ticks, mut look_at) = (0u32, None);
        loop {
            if self.attachments.look_soon && look_at.is_none() {
                look_at = Some(tokio::time::Instant::now() + SETTLE);
            }
            let judge = self.rollouts.due();
            let judged = async {
                match judge {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let look = async {
                match look_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                message = receiver.recv() => match message {
                    None => break,
                    Some(Message::Shutdown(reply)) => {
                        self.end();
                        let _ = reply.send(());
                        return;
                    }
                    Some(message) => self.handle(message),
                },
                _ = judged => self.look_at_rollouts(),
                () = self.tracing.due() => self.hand_on_events(),
                answers = self.stamps.answers() => self.note_stamps(answers),
                changed = events.changed(), if look_at.is_none() => match changed {
                    Ok(()) => look_at = Some(tokio::time::Instant::now() + SETTLE),
                    Err(error) => {
                        tracing::error!(%error, "no news about interfaces; they are looked at once a second");
                        look_at = Some(tokio::time::Instant::now() + TICK);
                    }
                },
                _ = look => {
                    look_at = None;
                    if let Err(error) = self.look_at_interfaces() {
                        tracing::error!(%error, "interfaces");
                    }
                    self.follow_mtu();
                }
                _ = tick.tick() => {
                    ticks = ticks.wrapping_add(1);
                    if ticks.is_multiple_of(TICKS_PER_LOOK) {
                        if let Err(error) = self.keep_pins() {
                            tracing::error!("what the kernel runs is not ours any more: {error:#}; the agent ends");
                            break;
                        }
                        self.look_at_attachments();
                        self.follow_firewall();
                    }
                    self.tick(ticks.is_multiple_of(TICKS_PER_SWEEP));
                }
                _ = std::future::ready(()), if self.applying.is_some() => {
                    self.apply_for_a_turn();
                    self.answer_waiting();
                    // Lets the sockets and timers be polled between two turns.
                    tokio::task::yield_now().await;
                }
                _ = std::future::ready(()), if self.janitor.is_sweeping() => {
                    if self.sweep_step() {
                        self.answer_waiting();
                    }
                    // Lets the sockets and timers be polled between two steps.
                    tokio::task::yield_now().await;
                }
            }
        }
        self.end();
    }

    fn end(&mut self) {
        self.finish_applying();
        self.end_proxy();
        self.keep_rollouts();
        self.save_runtime();
        self.store.close();
    }

    fn handle(&mut self, message: Message) {
        // A requester that went away does not want the answer.
        match message {
            Message::Load(loaded, reply) => self.load(loaded, reply),
            Message::Status(reply) => self.status(reply),
            Message::Flows(reply) => drop(reply.send(self.snapshot())),
            Message::Policy(reply) => drop(reply.send(self.in_force())),
            Message::Brief(reply) => {
                self.look_at_attachments();
                drop(reply.send(self.brief()));
            }
            Message::Trace(request, reply) => drop(reply.send(self.trace(request))),
            Message::Waiting(request, reply) => drop(reply.send(self.waiting_decisions(request))),
            Message::Explain(request, reply) => drop(reply.send(self.explain(&request))),
            Message::SetWeights(service, request, by, reply) => drop(reply.send(self.set_weights_by_hand(&service, &request, &by))),
            Message::Rollouts(reply) => drop(reply.send(self.list_rollouts())),
            Message::Rollout(service, reply) => drop(reply.send(self.rollout(&service))),
            Message::RolloutHistory(service, reply) => drop(reply.send(self.rollout_history(&service))),
            Message::RolloutWord(service, word, reply) => drop(reply.send(self.rollout_word(&service, word))),
            Message::Shutdown(reply) => drop(reply.send(())),
        }
    }

    /// The datapath; absent only when making larger maps failed.
    pub(super) fn datapath(&mut self) -> Result<&mut Datapath, ControlError> {
        self.datapath.as_mut().ok_or_else(|| ControlError::Kernel(NO_MAPS.into()))
    }

    pub(super) fn clock(&self) -> Result<Clock, DatapathError> {
        let (ticks, ticks_per_second) = self.datapath.as_ref().map_or(Ok((0, 1)), Datapath::ticks)?;
        Ok(Clock { ticks, ticks_per_second, heads: splitter_datapath::heads_clock() })
    }

    pub(super) fn save_runtime(&mut self) {
        self.runtime.generation = self.applied.generation;
        let result = self.store.save_runtime(&self.runtime);
        let lost = result.as_ref().is_err_and(StoreError::is_missing) && self.make_state_anew();
        let result = if lost { self.store.save_runtime(&self.runtime) } else { result };
        self.rollouts.saving.note("weights", result);
    }

    // ---- timers

    fn tick(&mut self, sweep: bool) {
        self.end_drains();
        self.keep_tracing();
        self.save_again();
        self.note_tallies();
        self.look_at_certificates();
        if !sweep {
            return;
        }
        self.look_at_state();
        if let Some(Err(error)) = self.datapath.as_mut().map(|datapath| datapath.turn_cookie_key(splitter_datapath::monotonic())) {
            tracing::error!(%error, "the key of sequence numbers stays; it is tried again");
        }
        if self.applied.error.is_some() && self.applying.is_none() {
            self.apply_soon(true);
        }
        // Also what an event should have told: an attach that failed is tried again.
        if let Err(error) = self.look_at_interfaces() {
            tracing::error!(%error, "interfaces");
        }
        self.follow_mtu();
        self.note_rates();
        self.doubt_stamps();
        self.ask_for_stamps();
        if !self.janitor.is_sweeping() && self.applying.is_none() {
            self.reconciler.sweep_begins();
            self.janitor.begin();
        }
    }

    /// One step; `true` when the sweep has ended.
    pub(super) fn sweep_step(&mut self) -> bool {
        let clock = match self.clock() {
            Ok(clock) => clock,
            Err(error) => {
                tracing::error!(%error, "no clock for the flow tables: idle flows stay");
                return true;
            }
        };
        let Some(datapath) = &mut self.datapath else { return true };
        match self.janitor.step(&mut datapath.tables, clock) {
            Ok(false) => false,
            Ok(true) => {
                self.swept = Instant::now();
                let findings = self.janitor.findings();
                if let Err(error) = self.reconciler.swept(&mut datapath.tables, |kind, number| findings.names(kind, number)) {
                    tracing::error!(%error, "numbers of removed objects are not free yet");
                }
                true
            }
            Err(error) => {
                tracing::error!(%error, "sweep");
                !self.janitor.is_sweeping()
            }
        }
    }
}

pub(super) fn sizes(settings: &Settings, services: &[Arc<Service>]) -> Sizes {
    let versions = services.iter().flat_map(|service| &service.versions);
    let (versions, backends) = versions.fold((0, 0), |(count, backends), version| (count + 1, backends + version.backends.len()));
    Sizes {
        max_flows: settings.max_flows.unwrap_or(Sizes::default().max_flows),
        versions,
        backends: backends.try_into().unwrap_or(u32::MAX),
        diagnostics: settings.debug_programs,
    }
}
