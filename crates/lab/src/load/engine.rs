//! The loop behind a load: paces requests over slots, waits for sockets, counts.

use super::{
    ErrorKind, Kind, Phase, Plan, Protocol, Reuse, Shared,
    slot::{Answer, Failure, Slot, Socket},
};
use crate::poll::{Event, Interest, Poll};
use anyhow::Result;
use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(20);
/// A slot rests after a failure, so that a dead target is not hammered in a tight loop.
const REST: Duration = Duration::from_millis(10);

pub(super) struct Engine {
    plan: Plan,
    shared: Arc<Shared>,
    poll: Poll,
    slots: Vec<Slot>,
    free: Vec<usize>,
    resting: VecDeque<(Instant, usize)>,
    started: Instant,
    begun: u64,
    tokens: u64,
    /// Bytes of each of the plan's kinds.
    requests: Vec<Vec<u8>>,
    next_tick: Instant,
}

impl Engine {
    pub fn new(mut plan: Plan, shared: Arc<Shared>) -> Result<Engine> {
        let now = Instant::now();
        if plan.kinds.is_empty() {
            plan.kinds.push(Kind::get(&plan.path));
        }
        Ok(Engine {
            slots: (0..plan.concurrency).map(|_| Slot::new(now)).collect(),
            // Popped from the end: slot 0 goes first.
            free: (0..plan.concurrency).rev().collect(),
            resting: VecDeque::new(),
            poll: Poll::new()?,
            started: now,
            begun: 0,
            tokens: 0,
            requests: plan.kinds.iter().map(|kind| kind.bytes(&plan)).collect(),
            next_tick: now + TICK,
            plan,
            shared,
        })
    }

    pub fn run(mut self) -> Result<()> {
        let mut events: Vec<Event> = Vec::new();
        loop {
            let now = Instant::now();
            while self.resting.front().is_some_and(|(until, _)| *until <= now) {
                self.free.extend(self.resting.pop_front().map(|(_, slot)| slot));
            }
            let over = self.over(now);
            while !over && !self.free.is_empty() && self.due() <= Instant::now() && !self.exhausted() {
                self.begin()?;
            }
            let idle = self.free.len() + self.resting.len();
            if (over || self.exhausted()) && idle == self.slots.len() {
                return Ok(());
            }
            let mut timeout = self.next_tick.saturating_duration_since(Instant::now());
            if !over && !self.free.is_empty() && !self.exhausted() {
                timeout = timeout.min(self.due().saturating_duration_since(Instant::now()));
            }
            self.poll.wait(Some(timeout), &mut events)?;
            for event in &events {
                self.event(event)?;
            }
            let now = Instant::now();
            if now >= self.next_tick {
                self.next_tick = now + TICK;
                self.expire(now);
            }
        }
    }

    fn over(&self, now: Instant) -> bool {
        self.shared.stop.load(Ordering::Relaxed) || self.plan.duration.is_some_and(|duration| now - self.started >= duration)
    }

    fn exhausted(&self) -> bool {
        self.plan.requests.is_some_and(|requests| self.begun >= requests)
    }

    /// When the next request is due.
    fn due(&self) -> Instant {
        self.plan.rate.map_or(self.started, |rate| self.started + Duration::from_secs_f64(self.begun as f64 / rate))
    }

    fn begin(&mut self) -> Result<()> {
        let Some(index) = self.free.pop() else { return Ok(()) };
        let (phase, now) = (self.shared.phase.load(Ordering::SeqCst), Instant::now());
        let due = if self.plan.rate.is_some() { self.due() } else { now };
        self.begun += 1;
        self.count(phase, |phase| phase.begun += 1);
        let source = (!self.plan.sources.is_empty()).then(|| self.plan.sources[self.begun as usize % self.plan.sources.len()]);
        if self.plan.protocol == Protocol::Udp {
            self.requests[0] = format!("request {}", self.begun).into_bytes();
        }
        let slot = &mut self.slots[index];
        (slot.phase, slot.due, slot.begun) = (phase, due, now);
        slot.kind = (mixed(self.begun) % self.requests.len() as u64) as usize;
        slot.begin(&self.requests[slot.kind]);
        if slot.socket.is_none() {
            slot.connection_phase = phase;
            if let Err(failure) = slot.open(&self.plan, source) {
                self.fail(index, failure);
                return Ok(());
            }
            self.tokens += 1;
            slot.token = self.tokens << 32 | index as u64;
            if let Some(socket) = &slot.socket {
                self.poll.add(socket, Interest::WRITE, slot.token)?;
            }
            if self.plan.protocol == Protocol::Http {
                return Ok(());
            }
        }
        self.drive(index)
    }

    fn event(&mut self, event: &Event) -> Result<()> {
        let index = (event.token & u64::from(u32::MAX)) as usize;
        let slot = &mut self.slots[index];
        if slot.token != event.token || slot.socket.is_none() {
            return Ok(());
        }
        if slot.busy {
            return self.drive(index);
        }
        if let Some(failure) = slot.idle_event() {
            // The slot is free already: it only loses its connection.
            slot.close();
            let phase = self.shared.phase.load(Ordering::SeqCst);
            self.count(phase, |phase| note(phase, failure));
        }
        Ok(())
    }

    fn drive(&mut self, index: usize) -> Result<()> {
        let was_sending = self.slots[index].sending();
        match self.slots[index].drive(&self.plan) {
            Ok(None) => {
                let slot = &self.slots[index];
                if let Some(socket) = &slot.socket {
                    // Level-triggered: once everything is sent, a writable socket must not wake us.
                    if slot.sending() {
                        self.poll.modify(socket, Interest::WRITE, slot.token)?;
                    } else if was_sending {
                        self.poll.modify(socket, Interest::READ, slot.token)?;
                    }
                }
            }
            Ok(Some(answer)) => self.answered(index, answer)?,
            Err(failure) => self.fail(index, failure),
        }
        Ok(())
    }

    fn answered(&mut self, index: usize, answer: Answer) -> Result<()> {
        let slot = &mut self.slots[index];
        let (fresh, latency) = (std::mem::take(&mut slot.fresh), slot.due.elapsed());
        let (phase, connection_phase) = (slot.phase, slot.connection_phase);
        if self.plan.reuse == Reuse::New || !answer.keep_alive {
            slot.close();
        } else if let Some(socket @ Socket::Tcp(_)) = &slot.socket {
            self.poll.modify(socket, Interest::READ, slot.token)?;
        }
        self.free.push(index);
        let mut phases = self.shared.phases();
        phases[phase].bytes += answer.bytes;
        let version = phases[phase].versions.entry(answer.version.clone()).or_default();
        version.requests += 1;
        version.latency.record(latency);
        if fresh {
            phases[connection_phase].versions.entry(answer.version).or_default().connections += 1;
        }
        Ok(())
    }

    fn fail(&mut self, index: usize, failure: Failure) {
        let phase = self.slots[index].phase;
        self.slots[index].close();
        self.resting.push_back((Instant::now() + REST, index));
        self.count(phase, |phase| note(phase, failure));
    }

    fn expire(&mut self, now: Instant) {
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            if slot.busy && now.saturating_duration_since(slot.begun) >= self.plan.timeout {
                let text = format!("no answer within {:?}{}", self.plan.timeout, if slot.sending() { " (not connected)" } else { "" });
                self.fail(index, (ErrorKind::Timeout, text));
            }
        }
    }

    fn count(&self, phase: usize, change: impl FnOnce(&mut Phase)) {
        change(&mut self.shared.phases()[phase]);
    }
}

/// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
fn mixed(number: u64) -> u64 {
    let mut z = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

fn note(phase: &mut Phase, (kind, text): Failure) {
    *phase.errors.entry(kind).or_default() += 1;
    phase.first_error.get_or_insert(text);
}
