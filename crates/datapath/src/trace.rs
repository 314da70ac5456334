//! Events of decisions: switching them on and off, and reading them.
//!
//! The ring and the counts belong to the programs that this agent loaded. The switch is pinned, and carries a time: nobody has to be there to
//! put it off.

use super::{Datapath, DatapathError, TRACE, TableError, causes, plain};
use aya::maps::{MapData, PerCpuArray, RingBuf};
use splitter_common::abi::{Trace, TraceCpu, TraceEvent};
use std::path::Path;
use tokio::io::{Interest, unix::AsyncFd};

const RING: &str = "TRACE_RING";
const CPU: &str = "TRACE_CPU";

/// The ring, for one reader.
pub struct Events {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl Events {
    /// Waits until there may be events.
    pub async fn readable(&mut self) -> std::io::Result<()> {
        let mut guard = self.ring.readable_mut().await?;
        // Whoever is told reads until nothing is left, or asks again.
        guard.clear_ready();
        Ok(())
    }

    /// Takes up to `limit` events; `true` when there may be more.
    pub fn take(&mut self, limit: usize, mut each: impl FnMut(TraceEvent)) -> bool {
        let ring = self.ring.get_mut();
        for _ in 0..limit {
            match ring.next() {
                Some(event) => each(plain::read(&event)),
                None => return false,
            }
        }
        true
    }
}

impl Datapath {
    /// The ring; once, since its reader moves on in it. Needs tokio's runtime.
    pub fn trace_events(&mut self) -> Result<Option<Events>, DatapathError> {
        let Some(map) = self.ebpf.take_map(RING) else { return Ok(None) };
        let failed = |cause: String| DatapathError::Map { path: RING.into(), cause };
        let ring = RingBuf::try_from(map).map_err(|error| failed(causes(&error)))?;
        // SAFETY: the ring owns its descriptor, which stays open as long as the ring is inside.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        let ring = ring.map_err(|error| failed(std::io::Error::from(error).to_string()))?;
        Ok(Some(Events { ring }))
    }

    /// Says what is looked at, and until when.
    pub fn look_at(&mut self, trace: Trace) -> Result<(), TableError> {
        TRACE.put_one(&mut self.tables, 0, trace)
    }

    /// Events that came too fast, and those for which there was no room, since the programs were loaded.
    pub fn trace_lost(&self) -> Result<[u64; 2], DatapathError> {
        let map = self.ebpf.map(CPU).ok_or(DatapathError::NoProgram(CPU))?;
        let failed = |error: aya::maps::MapError| DatapathError::map(Path::new(CPU), error);
        let values = PerCpuArray::<_, TraceCpu>::try_from(map).and_then(|map| map.get(&0, 0)).map_err(failed)?;
        Ok(values.iter().fold([0; 2], |[over, full], cpu| [over + cpu.over, full + cpu.full]))
    }
}

/// CLOCK_MONOTONIC, which the kernel programs stamp events by, in nanoseconds.
pub fn monotonic() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a struct to write to.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
