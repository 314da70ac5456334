//! A new agent meets what the kernel runs. Where kernel and files disagree about a canary, the lower share stands: a word that could not be
//! saved is not undone by a restart. Where the files are gone, the kernel's weights stay and are shown as what they are.

use super::Entry;
use crate::control::{
    actor::{Actor, unix_now},
    store::{Override, Weights},
    weights,
};
use splitter_api::RolloutEvent;
use splitter_common::decide::SPACE;
use splitter_datapath::reconcile;
use splitter_policy::model::{ALL, Ppm, Service};
use splitter_rollout::{Phase, State};
use std::sync::Arc;

/// Shares closer than this are the same: they went through whole weights.
const SAME: Ppm = 2;
/// Services that the log names one by one.
const NAMED: usize = 20;

impl Actor {
    /// Before anything is applied to maps that an earlier agent left. `had_state`: it also left its files.
    pub(in crate::control) fn meet_kernel(&mut self, had_state: bool) {
        let services = self.desired.services.clone();
        if !had_state {
            return self.keep_what_runs(&services);
        }
        if self.rollouts.entries.is_empty() {
            return;
        }
        // Whoever changed a policy's weights while no agent ran meant them.
        let last = self.store.policy().ok().flatten();
        let changed = |service: &Service| {
            let before = last.as_deref().and_then(|last| weights::find(last, &service.name));
            before.is_some_and(|before| weights::of(before) != weights::of(service))
        };
        let mut entries = std::mem::take(&mut self.rollouts.entries);
        for (name, entry) in &mut entries {
            match weights::find(&services, name) {
                Some(service) if !changed(service) => self.never_raise(service, entry),
                // One that runs stands back when the policy is taken.
                Some(_) if !entry.state.phase.is_live() => leave_alone(&mut entry.state),
                _ => {}
            }
        }
        self.rollouts.entries = entries;
    }

    /// Weights in millionths that the kernel gives to the versions of a service.
    fn kernel_weights(&self, service: &Service) -> Option<Weights> {
        let tables = &self.datapath.as_ref()?.tables;
        let widths = reconcile::running(tables, service)
            .inspect_err(|error| tracing::error!(%error, service = service.name, "what the kernel runs cannot be read"))
            .ok()??;
        let part = |width: &u64| ((u128::from(*width) * u128::from(ALL) + u128::from(SPACE / 2)) / u128::from(SPACE)) as u32;
        let weights: Weights = service.versions.iter().zip(&widths).map(|(version, width)| (version.name.clone(), part(width))).collect();
        weights.values().any(|weight| *weight > 0).then_some(weights)
    }

    /// The files are gone, the maps are not: nobody can say how far a rollout had come, so nobody should undo it in silence. A service
    /// without one goes by its policy.
    fn keep_what_runs(&mut self, services: &[Arc<Service>]) {
        let mut kept = Vec::new();
        for service in services.iter().filter(|service| service.rollout.is_some()) {
            let Some(running) = self.kernel_weights(service) else { continue };
            let policy = weights::of(service);
            if policy.keys().any(|name| share(&policy, name).abs_diff(share(&running, name)) > SAME) {
                kept.push(service.name.clone());
                self.runtime.overrides.insert(service.name.clone(), Override { base: policy, weights: reduced(running), kept: true });
            }
        }
        if kept.is_empty() {
            return;
        }
        let names = weights::list(kept.iter().take(NAMED).map(String::as_str));
        tracing::warn!(
            services = kept.len(),
            names,
            "the state directory is empty, and the kernel runs other weights than the policy says: the kernel's stay, `splitter status` shows them; \
             `splitter weight` or a change of the policy's weights ends that"
        );
    }

    fn never_raise(&mut self, service: &Arc<Service>, entry: &mut Entry) {
        let (name, policy) = (service.name.clone(), weights::of(service));
        let known = self.runtime.overrides.get(&name);
        // Weights of the policy that changed meanwhile are somebody's word, and newer.
        if known.is_some_and(|known| known.base != policy) {
            return;
        }
        let Some(running) = self.kernel_weights(service) else { return };
        let state = &entry.state;
        let asks = !state.yielded && (state.phase.is_live() || !state.settled);
        let effective = known.map_or(&policy, |known| &known.weights);
        let wanted = if asks { state.share } else { share(effective, &state.canary) };
        let runs = share(&running, &state.canary);
        if runs + SAME >= wanted {
            return;
        }
        let running = reduced(running);
        let text = |share: Ppm| format!("{}%", f64::from(share) / 1e4);
        let reason =
            format!("the kernel gives {} to {}, the state on disk {}: the lower one stands", text(runs), state.canary, text(wanted));
        tracing::warn!(service = name, reason, "a rollout's state is not what the kernel runs");
        let (event, from) = (stand_back(&mut entry.state, runs, &reason), f64::from(wanted) / f64::from(ALL));
        let kept = entry.state.yielded;
        self.runtime.overrides.insert(name.clone(), Override { base: policy, weights: running.clone(), kept });
        self.keep(entry);
        let event = RolloutEvent {
            at: unix_now(),
            service: name,
            canary: entry.state.canary.clone(),
            event: event.into(),
            by: "restart".into(),
            from,
            to: f64::from(runs) / f64::from(ALL),
            weights_to: running,
            step: entry.state.step,
            attempt: entry.state.attempt,
            reason,
            ..RolloutEvent::default()
        };
        self.tell(entry, event);
    }
}

/// A rollout that has ended no longer cares for the weights.
fn leave_alone(state: &mut State) {
    (state.settled, state.yielded, state.watched_until) = (true, true, None);
}

/// The state takes the kernel's share. A rollout between two steps repeats the one that runs; any other waits for somebody.
fn stand_back(state: &mut State, runs: Ppm, reason: &str) -> &'static str {
    state.evidence.step_begins();
    (state.entered, state.tried, state.share) = (state.clock, 0.0, runs);
    (state.pausing, state.confirmed, state.watched_until) = (None, false, None);
    state.reason = reason.into();
    let step = state.policy.steps.iter().position(|step| step.abs_diff(runs) <= SAME);
    match state.phase {
        Phase::Running if step.is_some() => {
            state.step = step.unwrap_or_default();
            state.share = state.policy.steps[state.step];
            state.settled = false;
            "resumed"
        }
        phase if phase.is_live() => {
            (state.phase, state.yielded) = (Phase::Paused, true);
            "paused"
        }
        _ => {
            leave_alone(state);
            if state.phase == Phase::Promoted {
                state.phase = Phase::Aborted;
            }
            "aborted"
        }
    }
}

fn share(weights: &Weights, name: &str) -> Ppm {
    let total: u64 = weights.values().map(|weight| u64::from(*weight)).sum();
    let own = u64::from(weights.get(name).copied().unwrap_or(0));
    (own * u64::from(ALL)).checked_div(total).unwrap_or(0) as Ppm
}

/// In small numbers, for people.
fn reduced(mut weights: Weights) -> Weights {
    let divisor = weights.values().fold(0u32, |a, b| gcd(a, *b)).max(1);
    weights.values_mut().for_each(|weight| *weight /= divisor);
    weights
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use splitter_datapath::Memory;
    use splitter_policy::model::{self, Gates, Pace, Rollout};
    use splitter_rollout::State;
    use std::time::Duration;

    fn state(phase: Phase, share: Ppm, step: usize) -> State {
        let policy = Rollout {
            canary: 1,
            baseline: 0,
            steps: vec![10_000, 100_000, ALL],
            pauses: Default::default(),
            pace: Pace::Fixed,
            dwell: Duration::from_secs(1),
            watch: Duration::from_secs(1),
            watch_after: Duration::ZERO,
            progress_deadline: None,
            min_samples: 1,
            warm_up: Duration::ZERO,
            judge: Default::default(),
            false_alarm: 10_000,
            gates: Gates::default(),
            retries: 0,
            cool_down: Duration::ZERO,
            freeze: Vec::new(),
            hooks: Vec::new(),
        };
        let weights = Weights::from([("v1".into(), 1), ("v2".into(), 0)]);
        State { phase, share, step, ..State::new("web", "v2", "v1", policy, &weights) }
    }

    #[test]
    fn the_lower_share_stands() {
        for (phase, share, step, runs, event, then) in [
            // A crash between saving a step and taking it: the step before is repeated.
            (Phase::Running, 100_000, 1, 10_000, "resumed", (Phase::Running, 10_000, 0)),
            // An abort that could not be saved.
            (Phase::Running, 100_000, 1, 0, "paused", (Phase::Paused, 0, 1)),
            (Phase::Paused, 100_000, 1, 10_000, "paused", (Phase::Paused, 10_000, 1)),
            // An undo that could not be saved.
            (Phase::Promoted, ALL, 2, 0, "aborted", (Phase::Aborted, 0, 2)),
        ] {
            let mut state = state(phase, share, step);
            assert_eq!(stand_back(&mut state, runs, "why"), event);
            assert_eq!((state.phase, state.share, state.step), then);
        }
    }

    #[test]
    fn shares_come_from_the_kernels_intervals() {
        let backend = |text: &str| model::Backend { address: text.parse().unwrap(), state: model::BackendState::Ready };
        let version = |name: &str, weight, address: &str| model::Version {
            name: name.into(),
            weight,
            backends: vec![backend(address)],
            lookups: Vec::new(),
            found: 0,
        };
        let service = Service {
            name: "web".into(),
            frontends: vec![model::Frontend { address: "10.9.9.9:80".parse().unwrap(), protocol: model::Protocol::Tcp }],
            mode: model::Mode::Tcp,
            split_by: model::SplitBy::Connection,
            versions: vec![version("v1", 95, "10.2.1.2:80"), version("v2", 5, "10.2.1.3:80")],
            rules: Vec::new(),
            http: None,
            tls: None,
            on_weight_change: Default::default(),
            pinned: Default::default(),
            snat: model::Snat::Auto,
            path: Default::default(),
            vip: Default::default(),
            rollout: None,
            origin: String::new(),
        };
        let (mut reconciler, mut memory) = (reconcile::Reconciler::new(), Memory::new());
        assert_eq!(reconcile::running(&memory, &service).unwrap(), None);
        reconciler.apply(&mut memory, &[Arc::new(service.clone())]).unwrap();
        let widths = reconcile::running(&memory, &service).unwrap().unwrap();
        assert_eq!(widths.iter().sum::<u64>(), SPACE);
        assert_eq!((widths[1] as f64 / SPACE as f64 * 1e6).round(), 50_000.0);
        // A version more in the policy has nothing yet; one fewer cannot be compared.
        let mut more = service.clone();
        more.versions.push(version("v3", 7, "10.2.1.4:80"));
        assert_eq!(reconcile::running(&memory, &more).unwrap().unwrap()[2], 0);
        let mut fewer = service;
        fewer.versions.pop();
        assert_eq!(reconcile::running(&memory, &fewer).unwrap(), None);
    }
}
