//! The janitor's part for http: spliced flows, their legs, the stashes of their requests. A spliced flow is refreshed by its client, its
//! leg by the backend: it is idle when both are. Must not change an entry that the kernel still works with, but only remove it.

use super::{Clock, ESTABLISHED, HALF_CLOSED, HALF_OPEN, Janitor, ORPHANED};
use splitter_common::abi::*;
use splitter_datapath::{
    Cursor, FlowTables, STASH_SETS, Table, TableError, Tables,
    reconcile::flows::{client_of, forget_translations, leg_in_use, translated_source},
};

/// The clock of slots for heads goes this often in a second.
const HEADS_PER_SECOND: f64 = 1e9 / (1 << 20) as f64;

/// How long a flow of this state may be idle, seconds.
fn timeout(state: u8, flags: u8) -> u32 {
    match state {
        splice_state::ESTABLISHED if flags & (splice_flag::FIN | splice_flag::PEER_FIN) != 0 => HALF_CLOSED,
        splice_state::ESTABLISHED => ESTABLISHED,
        _ => HALF_OPEN,
    }
}

/// Whether the backend of a leg in use has not said all of its response.
fn owes<F: FlowTables>(leg: &Leg<F>) -> bool {
    let (flags, left) = (leg.owner.flags(), leg.body_end.wrapping_sub(leg.next) as i32);
    flags & leg_flag::FIN == 0 && (flags & (leg_flag::AWAIT | leg_flag::CHUNKED | leg_flag::UNSURE) != 0 || left > 0)
}

impl Janitor {
    fn is_dead(&self, backend: u32) -> bool {
        backend != 0 && self.live.as_ref().is_some_and(|live| !live.has(backend))
    }

    /// Counts the slots for heads. What their owners have had for too long the kernel gives to others by itself.
    pub(super) fn stashes(&mut self, tables: &impl Tables, clock: Clock) -> Result<bool, TableError> {
        let (mut kept, mut heads) = (0, std::collections::HashMap::new());
        STASH_SETS.each(tables, |_, set| {
            for word in set.words.into_iter().filter(|word| stash_word::is_kept(*word, clock.heads)) {
                *heads.entry((word >> stash_word::SERVICE) as u16).or_default() += 1;
                kept += 1;
            }
        })?;
        self.now.heads = heads;
        self.now.entries.insert(Table::Stashes, kept);
        Ok(false)
    }

    /// One step over the spliced flows.
    pub(super) fn spliced<F: FlowTables>(
        &mut self,
        tables: &mut impl Tables,
        cursor: &mut Cursor,
        clock: Clock,
    ) -> Result<bool, TableError> {
        let (mut seen, mut idle) = (0, Vec::new());
        let more = F::SPLICED.scan(tables, cursor, |key, spliced| {
            seen += 1;
            self.note(&spliced);
            // Acknowledgements refresh an entry whose head is not complete; its age is that of the head.
            if clock.is_older(spliced.last, self.limit(&spliced, None)) || spliced.state == splice_state::GATHERING {
                idle.push(key);
            } else {
                self.count(&spliced);
            }
        })?;
        let (mut dead, mut legs, mut translated) = (Vec::new(), Vec::new(), Vec::new());
        for key in idle {
            let Some(spliced) = F::SPLICED.get(tables, key)? else {
                seen -= 1;
                continue;
            };
            let leg_key = leg_in_use(&spliced);
            let leg = F::LEGS.get(tables, leg_key)?.filter(|leg| client_of(leg) == key);
            if !self.is_over(&spliced, leg.as_ref(), clock) {
                self.count(&spliced);
                continue;
            }
            dead.push(key);
            legs.extend(leg.map(|_| leg_key));
            if translated_source(&key, &spliced).is_some() {
                translated.extend([key, leg_key]);
            }
        }
        *self.now.entries.entry(F::SPLICED.0).or_default() += seen - dead.len() as u64;
        F::SPLICED.delete(tables, &dead)?;
        F::LEGS.delete(tables, &legs)?;
        forget_translations(tables, &translated)?;
        Ok(more)
    }

    /// What a flow names is in use.
    fn note<F: FlowTables>(&mut self, spliced: &Spliced<F>) {
        self.now.next_hops.set(u32::from(spliced.nexthop));
        self.now.backends.set(spliced.owner.backend());
        self.now.services.set(spliced.service);
    }

    /// Counts a flow that has a backend.
    fn count<F: FlowTables>(&mut self, spliced: &Spliced<F>) {
        let connected = matches!(spliced.state, splice_state::ESTABLISHED | splice_state::GATHERING);
        let backend = spliced.owner.backend();
        if connected && backend != 0 && !self.is_dead(backend) {
            *self.now.flows.entry(backend).or_default() += 1;
            if spliced.owner.is(splice_flag::PINNED) {
                *self.now.pinned.entry(backend).or_default() += 1;
            }
        }
    }

    /// A flow of a dead backend waits for the packet that resets its ends, or the request that goes elsewhere. Who owes an answer is waited for as long
    /// as an open connection is.
    fn limit<F: FlowTables>(&self, spliced: &Spliced<F>, leg: Option<&Leg<F>>) -> u32 {
        let (backend, pinned) = (spliced.owner.backend(), spliced.owner.is(splice_flag::PINNED));
        let owes = spliced.state == splice_state::ESTABLISHED && leg.is_some_and(owes);
        let finishes = self.leaving.has(backend) && (owes || pinned);
        let limit = if owes { ESTABLISHED } else { timeout(spliced.state, spliced.owner.flags()) };
        if self.is_dead(backend) && !finishes { limit.min(ORPHANED) } else { limit }
    }

    /// Whether nobody has been heard of for long: neither client nor backend, and no request has begun. A head that is not complete ages by its first
    /// byte alone: acknowledgements of an earlier response keep nobody.
    fn is_over<F: FlowTables>(&self, spliced: &Spliced<F>, leg: Option<&Leg<F>>, clock: Clock) -> bool {
        let limit = self.limit(spliced, leg);
        let waits = matches!(spliced.state, splice_state::GATHERING | splice_state::OPENING) && spliced.stash != 0;
        let age = f64::from((clock.heads.wrapping_sub(spliced.stashed) as i32).max(0)) / HEADS_PER_SECOND;
        if waits && age <= f64::from(limit) {
            return false;
        }
        let heard = [Some(spliced.last), leg.map(|leg| leg.last)];
        spliced.state == splice_state::GATHERING || heard.into_iter().flatten().all(|last| clock.is_older(last, limit))
    }

    /// One step over the legs: those that no flow can use any more go.
    pub(super) fn legs<F: FlowTables>(&mut self, tables: &mut impl Tables, cursor: &mut Cursor, clock: Clock) -> Result<bool, TableError> {
        let (mut seen, mut quiet, mut dead) = (0, Vec::new(), Vec::new());
        let more = F::LEGS.scan(tables, cursor, |key, leg| {
            seen += 1;
            self.now.next_hops.set(u32::from(leg.nexthop));
            self.now.next_hops.set(u32::from(leg.forward));
            self.now.backends.set(leg.owner.backend());
            let idle = leg.owner.is(leg_flag::IDLE);
            if clock.is_older(leg.last, ORPHANED) || idle && self.is_dead(leg.owner.backend()) {
                quiet.push(key);
            }
        })?;
        for key in quiet {
            // Both are read again, the leg first: what the kernel takes up meanwhile is named by its flow.
            let Some(leg) = F::LEGS.get(tables, key)? else {
                seen -= 1;
                continue;
            };
            let flow = F::SPLICED.get(tables, client_of(&leg))?;
            let in_use = flow.is_some_and(|flow| leg_in_use(&flow) == key);
            let kept = flow.is_some_and(|flow| flow.idle.contains(&leg.owner.backend())) && !self.is_dead(leg.owner.backend());
            if !in_use && !kept {
                dead.push(key);
            }
        }
        *self.now.entries.entry(F::LEGS.0).or_default() += seen - dead.len() as u64;
        F::LEGS.delete(tables, &dead)?;
        Ok(more)
    }
}

#[cfg(test)]
mod tests;
