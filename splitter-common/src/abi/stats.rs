//! What the kernel counts and the agent reads.

use super::pod;
use crate::histogram::SUBBUCKETS;

/// Value of `COUNTERS` (per-CPU array, index: version id). All totals since the version got its id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VersionCounters {
    /// Flows given to this version (TCP: at the SYN; UDP: at the first datagram).
    pub connections: u64,
    /// TCP handshakes completed, UDP flows begun.
    pub opened: u64,
    /// Flows that ended: both FINs, a RST, or given up. Flows that idle out or are evicted are found by the agent.
    pub closed: u64,
    /// Client to backend: IP packets and bytes (link header excluded; a GSO packet counts once).
    pub packets_in: u64,
    pub bytes_in: u64,
    /// Backend to client.
    pub packets_out: u64,
    pub bytes_out: u64,
    /// RST by the client on an established flow.
    pub resets_client: u64,
    /// RST by the backend on an established flow, or made by the node for a backend that went down.
    pub resets_backend: u64,
    /// RST by the backend in answer to a SYN.
    pub refused: u64,
    /// SYNs that a backend left unanswered until the client sent another.
    pub timeouts: u64,
    /// HTTP requests given to this version.
    pub requests: u64,
    /// HTTP responses by status class: index 1 to 5; 0: what is none.
    pub status: [u64; 6],
    /// Requests whose connection came from another version.
    pub switches: u64,
    /// What became of the trials that the weights drew: what a judge may go by.
    pub drawn: Outcomes,
    /// The same of trials that a rule sent here, whatever the weights.
    pub ruled: Outcomes,
    /// Trials whose clients wait for an answer, by when they began: see [`super::trial`]. Of those that [`super::Backend::timing`] names.
    pub pending: [u32; super::trial::SLOTS],
}

/// What became of trials: client connections and UDP flows (layer 4), requests (http). A trial belongs to the version that was chosen for it, and
/// ends in exactly one outcome, at the moment when the client suffers or is served; until then it is pending. In the order of [`super::trial::outcome`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// Trials begun. Tries of several backends are one trial.
    pub trials: u64,
    /// The first response byte came (layer 4), or a complete status line (http).
    pub answered: u64,
    /// No backend took it: the last one tried answered with a RST, or an ICMP error quoted the node's packet to it.
    pub refused: u64,
    /// No backend's SYN-ACK came before the client gave up, or the entry aged out.
    pub unopened: u64,
    /// The backend had it, and the client ended the connection before the first response byte.
    pub abandoned: u64,
    /// The backend ended the connection (FIN or RST) without a response byte.
    pub closed: u64,
    /// Of `answered`: the backend ended the connection in the middle of the response (http: before the end that its head names; layer 4: by a RST).
    pub cut: u64,
    /// The node refused it itself, for want of a backend: 503, RST, or ICMP.
    pub unavailable: u64,
    /// It ended, however, later than [`super::Backend::unanswered`] after it began; counted here and nowhere else. What has not ended is in
    /// [`VersionCounters::pending`], and comes here when its slot is used again. Modulo 2^64 on each CPU; the sum counts.
    pub overdue: u64,
    /// http: answers by status class: index 1 to 5; 0: what is none.
    pub status: [u64; 6],
    /// http: answers whose status the service counts as failures (`errorRate.codes`).
    pub failed: u64,
}

/// Value of `LAPSED` (key: version id): handshakes that nobody answered and nobody ended, which the agent found when their entries had aged. Added to
/// [`Outcomes::unopened`] for whoever reads totals; a judge has seen them as pending and overdue long before. Not touched by the kernel programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lapsed {
    pub drawn: u64,
    pub ruled: u64,
}

/// What a histogram measures.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Measure {
    /// SYN to the backend's SYN-ACK, as the node sees it.
    Connect = 0,
    /// First request byte (or end of handshake, when the server speaks first) to first response byte.
    FirstByte = 1,
}

impl Measure {
    pub const ALL: [Measure; 2] = [Measure::Connect, Measure::FirstByte];
}

/// Key of `HISTOGRAMS` (per-CPU hash): one octave of one histogram. Entries appear with their first sample.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HistogramKey {
    /// Version id.
    pub version: u32,
    /// [`Measure`] in the low byte, 1 in the next one for trials that a rule sent there, octave (see `histogram`) in the high half.
    pub measure_octave: u32,
}

impl HistogramKey {
    pub const fn new(version: u32, measure: Measure, ruled: bool, octave: u32) -> Self {
        Self { version, measure_octave: measure as u32 | (ruled as u32) << 8 | octave << 16 }
    }
    pub const fn measure(&self) -> u32 {
        self.measure_octave & 0xff
    }
    /// Whether a rule chose the version for these trials; else the weights did.
    pub const fn ruled(&self) -> bool {
        self.measure_octave >> 8 & 1 != 0
    }
    pub const fn octave(&self) -> u32 {
        self.measure_octave >> 16
    }
}

/// Value of `HISTOGRAMS`: samples by sub-bucket.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistogramOctave {
    pub counts: [u32; SUBBUCKETS as usize],
}

pod!(VersionCounters, Outcomes, Lapsed, HistogramKey, HistogramOctave);
