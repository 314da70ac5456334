//! What the actor looks at by itself: interfaces, the paths behind them, request rates.

use super::{actor::Actor, counters, status};
use crate::{
    datapath::{self, Datapath, DatapathError},
    model::Mode,
};

impl Actor {
    pub(super) fn look_at_interfaces(&mut self) -> Result<(), DatapathError> {
        let links = datapath::interfaces().map_err(DatapathError::Netlink)?;
        let Some(datapath) = &mut self.datapath else { return Ok(()) };
        let before: Vec<_> = datapath.served().cloned().collect();
        for error in datapath.serve(&links, &self.patterns, self.settings.xdp.into())? {
            tracing::warn!("{error}");
        }
        for served in datapath.served().filter(|served| !before.contains(served)) {
            let programs: Vec<_> = served.hooks.iter().map(|hook| hook.name()).collect();
            tracing::info!(interface = served.name, ifindex = served.ifindex, programs = programs.join(" "), "attached");
        }
        for gone in before.iter().filter(|old| datapath.served().all(|served| served.ifindex != old.ifindex)) {
            tracing::info!(interface = gone.name, ifindex = gone.ifindex, "gone");
        }
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
        let http = self.reconciler.services().filter(|planned| planned.model.mode == Mode::Http);
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
