//! What the actor looks at by itself: interfaces, the paths behind them, request rates.

use super::{actor::Actor, counters, status};
use splitter_datapath::{Datapath, DatapathError};
use std::time::{Duration, Instant};

/// What is known about the programs on interfaces beside what [`Datapath`] knows.
#[derive(Default)]
pub(super) struct Attachments {
    /// Times that a program was taken from its hook by somebody else, since the start.
    pub(super) lost: u64,
    /// What `--interface` asks for and cannot be had, and that nothing is attached at all.
    pub(super) warnings: Vec<String>,
    /// Something is to be put back.
    pub(super) look_soon: bool,
    looked: Option<Instant>,
}

/// What the kernel says about attached programs is believed for this long.
const BELIEVED: Duration = Duration::from_millis(100);

impl Actor {
    /// Asks the kernel whether all programs are still in their places. What is not is told as missing, and put back soon.
    pub(super) fn look_at_attachments(&mut self) {
        if self.attachments.looked.is_some_and(|looked| looked.elapsed() < BELIEVED) {
            return;
        }
        self.attachments.looked = Some(Instant::now());
        let Some(datapath) = &mut self.datapath else { return };
        for lost in datapath.look_again() {
            tracing::warn!(interface = lost.interface, program = lost.hook.name(), "somebody detached it; it is put back");
            self.attachments.lost += 1;
            self.attachments.look_soon = true;
        }
    }

    /// The pins are how the next agent finds what this one leaves: those that somebody removed are made again.
    ///
    /// # Errors
    /// When another agent has taken the place: two cannot serve it.
    pub(super) fn keep_pins(&mut self) -> anyhow::Result<()> {
        self.hold.renew()?;
        let Some(datapath) = &self.datapath else { return Ok(()) };
        match datapath.pin_again() {
            Ok(0) => {}
            Ok(count) => tracing::warn!(count, pins = %datapath.pins().display(), "somebody removed pins of maps; they are pinned again"),
            Err(error) => {
                tracing::error!(%error, "maps whose pins somebody removed are not pinned again; the next agent would not find them")
            }
        }
        Ok(())
    }

    pub(super) fn look_at_interfaces(&mut self) -> Result<(), DatapathError> {
        self.attachments.looked = None;
        self.look_at_attachments();
        self.attachments.look_soon = false;
        let links = splitter_datapath::interfaces().map_err(DatapathError::Netlink)?;
        let Some(datapath) = &mut self.datapath else { return Ok(()) };
        splitter_datapath::make_pins(datapath.pins())?;
        let before: Vec<_> = datapath.served().cloned().collect();
        for error in datapath.serve(&links, &self.patterns, self.settings.xdp.into())? {
            tracing::warn!("{error}");
        }
        for served in datapath.served().filter(|served| !served.hooks.is_empty() && !before.contains(served)) {
            let programs: Vec<_> = served.hooks.iter().map(|hook| hook.name()).collect();
            tracing::info!(interface = served.name, ifindex = served.ifindex, programs = programs.join(" "), "attached");
        }
        for gone in before.iter().filter(|old| datapath.served().all(|served| served.ifindex != old.ifindex)) {
            tracing::info!(interface = gone.name, ifindex = gone.ifindex, "gone");
        }
        let mut warnings = self.patterns.warnings(&links);
        if datapath.served().all(|served| served.hooks.is_empty()) {
            warnings
                .push("attached to no interface: no traffic is split; `splitter status` lists interfaces, --interface names them".into());
        }
        for warning in warnings.iter().filter(|warning| !self.attachments.warnings.contains(warning)) {
            tracing::warn!("{warning}");
        }
        self.attachments.warnings = warnings;
        Ok(())
    }

    /// Clients of http services are told segments that every path carries.
    pub(super) fn follow_mtu(&mut self) {
        let Some(mtu) = self.datapath.as_ref().and_then(Datapath::mtu) else { return };
        // What was never applied, or failed, is applied with it anyway.
        if self.reconciler.set_mtu(mtu) && !self.reconciler.is_unsure() {
            self.apply_soon(false);
        }
    }

    /// Requests a second are told as of the last few seconds.
    pub(super) fn note_rates(&mut self) {
        let http = self.reconciler.services().filter(|planned| planned.model.mode.reads_requests());
        let numbers: Vec<u32> = http.flat_map(status::versions).collect();
        let Some(datapath) = self.datapath.as_ref().filter(|_| !numbers.is_empty()) else { return };
        match counters::of_versions(&datapath.tables, &numbers) {
            Ok(found) => {
                let totals = numbers.iter().filter_map(|number| Some((*number, found.get(number)?.requests))).collect();
                self.rates.note(self.begin.elapsed().as_secs_f64(), totals);
            }
            Err(error) => tracing::error!(%error, "request rates"),
        }
    }
}
