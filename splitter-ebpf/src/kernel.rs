//! [`Env`] over the real maps and clocks.

use crate::{
    log,
    maps::{self, Kernel},
};
use aya_ebpf::{
    helpers::generated::{bpf_jiffies64, bpf_ktime_get_ns, bpf_probe_read_kernel},
    maps::lpm_trie::Key,
};
use splitter_common::{
    abi::*,
    decide::Search,
    http::{HEAD_LIMIT, HeadText},
};
use splitter_ebpf::{
    bytes::{Ref, add_to_long, within},
    env::{Env, Note, Scratch, Table, Tables},
};

impl Env for Kernel {
    #[inline(always)]
    fn ticks(&self) -> u32 {
        // SAFETY: a helper without arguments; the verifier turns it into a load (Linux 5.5).
        unsafe { bpf_jiffies64() as u32 }
    }
    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_ns() }
    }
    #[inline(always)]
    fn config(&self) -> Option<Ref<Config>> {
        maps::reference(maps::CONFIG.get_ptr_mut(0))
    }
    #[inline(always)]
    fn xdp_port(&self, ifindex: u32) -> u64 {
        maps::xdp_port(ifindex)
    }
    #[inline(always)]
    fn filter_word(&self, index: u32) -> u64 {
        maps::filter_word(index)
    }
    #[inline(always)]
    fn frontend(&self, key: &FrontendKey) -> Option<u32> {
        maps::FRONTENDS.get_ptr(key).map(maps::load)
    }
    #[inline(always)]
    fn service(&self, id: u32) -> Option<Ref<Service>> {
        maps::reference(maps::SERVICES.get_ptr_mut(id))
    }
    #[inline(always)]
    fn maglev(&self, key: &MaglevKey) -> Option<Ref<MaglevChunk>> {
        maps::reference(maps::MAGLEV.get_ptr_mut(key))
    }
    #[inline(always)]
    fn rule(&self, service: u32, client: &Addr) -> Option<u32> {
        let mut data = [0u8; 20];
        data[..4].copy_from_slice(&service.to_be_bytes());
        data[4..].copy_from_slice(client);
        maps::RULES.get(Key::new(RULE_PREFIX_BASE + 128, data)).copied()
    }
    #[inline(always)]
    fn backend(&self, id: u32) -> Option<Ref<Backend>> {
        maps::reference(maps::BACKENDS.get_ptr_mut(id))
    }
    #[inline(always)]
    fn iface(&self, ifindex: u32) -> Option<Ref<Iface>> {
        maps::reference(maps::IFACES.get_ptr_mut(ifindex))
    }
    #[inline(always)]
    fn vip(&self, addr: &Addr) -> Option<u32> {
        maps::VIPS.get_ptr(addr).map(maps::load)
    }
    #[inline(always)]
    fn owned(&self, addr: &Addr) -> bool {
        maps::OWNED.get_ptr(addr).is_some()
    }
    #[inline(always)]
    fn errors(&self) -> Option<Ref<[u32; 2]>> {
        maps::reference(maps::ERRORS.get_ptr_mut(0))
    }
    #[inline(always)]
    fn nexthop(&self, slot: u32) -> Option<Ref<NextHop>> {
        maps::reference(maps::NEXTHOPS.get_ptr_mut(slot))
    }
    #[inline(always)]
    fn nexthop_owner(&self, slot: u32) -> Option<Ref<NextHop>> {
        maps::reference(maps::NEXTHOP_OWNERS.get_ptr_mut(slot))
    }
    #[inline(always)]
    fn claim_nexthop(&self, slot: u32, hop: &NextHop) -> bool {
        maps::NEXTHOP_OWNERS.insert(slot, hop, maps::NOEXIST).is_ok()
    }
    #[inline(always)]
    fn suspect(&self, backend: u32) -> Option<u32> {
        maps::SUSPECTS.get_ptr(backend).map(maps::load)
    }
    #[inline(always)]
    fn set_suspect(&self, backend: u32, until: u32) {
        let _ = maps::SUSPECTS.insert(backend, until, 0);
    }
    #[inline(always)]
    fn suspected(&self, version: u32) -> Option<Ref<Suspected>> {
        if let Some(value) = maps::SUSPECTED.get_ptr_mut(version) {
            return maps::reference(Some(value));
        }
        let _ = maps::SUSPECTED.insert(version, Suspected::default(), maps::NOEXIST);
        maps::reference(maps::SUSPECTED.get_ptr_mut(version))
    }
    #[inline(always)]
    fn known_suspected(&self, version: u32) -> Option<Ref<Suspected>> {
        maps::reference(maps::SUSPECTED.get_ptr_mut(version))
    }
    #[inline(always)]
    fn stray(&self, connection: u32) -> Option<u32> {
        maps::STRAYS.get_ptr(connection).map(maps::load)
    }
    #[inline(always)]
    fn set_stray(&self, connection: u32, since: u32) {
        let _ = maps::STRAYS.insert(connection, since, 0);
    }
    #[inline(always)]
    fn counters(&self, version: u32) -> Option<Ref<VersionCounters>> {
        maps::reference(maps::COUNTERS.get_ptr_mut(version))
    }
    #[inline(always)]
    fn moved(&self, version: u32) {
        // Read first: while the mark stands, all CPUs share its line of the cache.
        if let Some(mark) = maps::reference(maps::MOVED.get_ptr_mut(version))
            && mark.get() == 0
        {
            mark.set(1);
        }
    }
    #[inline(always)]
    fn octave(&self, key: &HistogramKey) -> Option<Ref<HistogramOctave>> {
        if let Some(value) = maps::HISTOGRAMS.get_ptr_mut(key) {
            return maps::reference(Some(value));
        }
        let _ = maps::HISTOGRAMS.insert(key, maps::EMPTY_OCTAVE.get(0)?, maps::NOEXIST);
        maps::reference(maps::HISTOGRAMS.get_ptr_mut(key))
    }
    #[inline(always)]
    fn count(&self, reason: Reason) {
        maps::count(reason);
    }
    #[inline(always)]
    fn search(&self) -> Option<Ref<Search>> {
        // SAFETY: the address of a field of a live map value; nothing is read.
        maps::reference(maps::SCRATCH4.get_ptr_mut(0).map(|scratch| unsafe { &raw mut (*scratch).search }))
    }
    #[inline(always)]
    fn http_rules(&self, service: u32) -> Option<Ref<HttpRules>> {
        maps::reference(maps::HTTP_RULES.get_ptr_mut(service))
    }
    #[inline(always)]
    fn stash(&self, slot: u32) -> Option<Ref<Stash>> {
        maps::reference(maps::STASHES.get_ptr_mut(slot))
    }
    #[inline(always)]
    fn stash_set(&self, set: u32) -> Option<Ref<StashSet>> {
        maps::reference(maps::STASH_SETS.get_ptr_mut(set))
    }
    #[inline(always)]
    fn spent(&self, set: u32) -> Option<Ref<CookieSet>> {
        maps::reference(maps::SPENT.get_ptr_mut(set))
    }
    #[inline(always)]
    fn handshakes(&self, set: u32) -> Option<Ref<CookieSet>> {
        maps::reference(maps::HANDSHAKES.get_ptr_mut(set))
    }
    #[inline(always)]
    fn guesses(&self, slot: u32) -> Option<Ref<Guesses>> {
        maps::reference(maps::GUESSES.get_ptr_mut(slot))
    }
    #[inline(always)]
    fn count_loss(&self, key: &LossKey) {
        if maps::HEAD_LOSSES.get_ptr(key).is_none() {
            let _ = maps::HEAD_LOSSES.insert(key, 0, maps::NOEXIST);
        }
        if let Some(count) = maps::HEAD_LOSSES.get_ptr_mut(key) {
            // SAFETY: a lookup's value is live while the program runs.
            unsafe { add_to_long(count, 1) };
        }
    }
    #[inline(always)]
    fn splice_lock(&self, slot: u32) -> Option<Ref<u64>> {
        maps::reference(maps::SPLICE_LOCKS.get_ptr_mut(slot))
    }
    #[inline(always)]
    fn copy_text(&self, to: &mut HeadText, from: &HeadText, len: u32) {
        if let Some(len) = within::<HEAD_LIMIT>(len) {
            // SAFETY: both are longer than HEAD_LIMIT. The helper copies memory of maps as any other (Linux 5.5).
            unsafe { bpf_probe_read_kernel(to.as_mut_ptr().cast(), len, from.as_ptr().cast()) };
        }
    }
    #[inline(always)]
    fn trace(&self) -> Option<Ref<Trace>> {
        maps::reference(maps::TRACE.get_ptr_mut(0))
    }
    #[inline(always)]
    fn trace_cpu(&self) -> Option<Ref<TraceCpu>> {
        maps::reference(maps::TRACE_CPU.get_ptr_mut(0))
    }
    #[inline(always)]
    fn told(&self, slot: u32) -> Option<Ref<u64>> {
        maps::reference(maps::TRACE_TOLD.get_ptr_mut(slot))
    }
    #[inline(always)]
    fn copy_start(&self, to: &mut [u8; TRACE_TEXT], from: &HeadText) {
        // SAFETY: as above; a text is longer than this.
        unsafe { bpf_probe_read_kernel(to.as_mut_ptr().cast(), TRACE_TEXT as u32, from.as_ptr().cast()) };
    }
    #[inline(always)]
    fn speaks(&self) -> bool {
        log::on()
    }
    #[inline(always)]
    fn note(&self, what: Note, service: u32, detail: u32) {
        log::note(what as u32, service, detail);
    }
    #[inline(always)]
    fn emit(&self, event: &TraceEvent) -> bool {
        // Linux 5.8.
        maps::TRACE_RING.output::<TraceEvent>(event, 0).is_ok()
    }
}

macro_rules! tables {
    ($family:ty, $tcp:ident $udp:ident $half:ident $closing:ident $snat:ident $claims:ident $fragments:ident $spliced:ident $answered:ident $legs:ident $scratch:ident) => {
        impl Tables<$family> for Kernel {
            #[inline(always)]
            fn scratch(&self) -> Option<Ref<Scratch<$family>>> {
                maps::reference(maps::$scratch.get_ptr_mut(0))
            }
            #[inline(always)]
            fn flow(&self, table: Table, key: &FlowKey<$family>) -> Option<Ref<Flow<$family>>> {
                maps::reference(match table {
                    Table::Tcp => maps::$tcp.get_ptr_mut(key),
                    Table::Udp => maps::$udp.get_ptr_mut(key),
                    Table::Closing => maps::$closing.get_ptr_mut(key),
                })
            }
            #[inline(always)]
            fn put_flow(&self, table: Table, key: &FlowKey<$family>, flow: &Flow<$family>) -> bool {
                match table {
                    Table::Tcp => maps::$tcp.insert(key, flow, 0).is_ok(),
                    Table::Udp => maps::$udp.insert(key, flow, 0).is_ok(),
                    Table::Closing => maps::$closing.insert(key, flow, 0).is_ok(),
                }
            }
            #[inline(always)]
            fn new_flow(&self, table: Table, key: &FlowKey<$family>, flow: &Flow<$family>) -> bool {
                match table {
                    Table::Tcp => maps::$tcp.insert(key, flow, maps::NOEXIST).is_ok(),
                    Table::Udp => maps::$udp.insert(key, flow, maps::NOEXIST).is_ok(),
                    Table::Closing => maps::$closing.insert(key, flow, maps::NOEXIST).is_ok(),
                }
            }
            #[inline(always)]
            fn drop_flow(&self, table: Table, key: &FlowKey<$family>) {
                let _ = match table {
                    Table::Tcp => maps::$tcp.remove(key),
                    Table::Udp => maps::$udp.remove(key),
                    Table::Closing => maps::$closing.remove(key),
                };
            }
            #[inline(always)]
            fn half(&self, key: &FlowKey<$family>) -> Option<Ref<HalfOpen<$family>>> {
                maps::reference(maps::$half.get_ptr_mut(key))
            }
            #[inline(always)]
            fn put_half(&self, key: &FlowKey<$family>, half: &HalfOpen<$family>) -> bool {
                maps::$half.insert(key, half, 0).is_ok()
            }
            #[inline(always)]
            fn new_half(&self, key: &FlowKey<$family>, half: &HalfOpen<$family>) -> bool {
                maps::$half.insert(key, half, maps::NOEXIST).is_ok()
            }
            #[inline(always)]
            fn drop_half(&self, key: &FlowKey<$family>) {
                let _ = maps::$half.remove(key);
            }
            #[inline(always)]
            fn snat(&self, key: &FlowKey<$family>) -> Option<Ref<Snat<$family>>> {
                match maps::$snat.get_ptr_mut(key) {
                    None => self.claim(key),
                    found => maps::reference(found),
                }
            }
            #[inline(always)]
            fn put_snat(&self, key: &FlowKey<$family>, snat: &Snat<$family>) -> bool {
                maps::$snat.insert(key, snat, 0).is_ok()
            }
            #[inline(always)]
            fn drop_snat(&self, key: &FlowKey<$family>) {
                let _ = maps::$snat.remove(key);
                let _ = maps::$claims.remove(key);
            }
            #[inline(always)]
            fn claim(&self, key: &FlowKey<$family>) -> Option<Ref<Snat<$family>>> {
                maps::reference(maps::$claims.get_ptr_mut(key))
            }
            #[inline(always)]
            fn put_claim(&self, key: &FlowKey<$family>, snat: &Snat<$family>) -> bool {
                maps::$claims.insert(key, snat, 0).is_ok()
            }
            #[inline(always)]
            fn new_claim(&self, key: &FlowKey<$family>, snat: &Snat<$family>) -> bool {
                maps::$claims.insert(key, snat, maps::NOEXIST).is_ok()
            }
            #[inline(always)]
            fn drop_claim(&self, key: &FlowKey<$family>) {
                let _ = maps::$claims.remove(key);
            }
            #[inline(always)]
            fn fragment(&self, key: &FragmentKey<$family>) -> Option<u32> {
                maps::$fragments.get_ptr(key).map(maps::load)
            }
            #[inline(always)]
            fn put_fragment(&self, key: &FragmentKey<$family>, ports: u32) {
                let _ = maps::$fragments.insert(key, ports, 0);
            }
            #[inline(always)]
            fn spliced(&self, key: &FlowKey<$family>) -> Option<Ref<Spliced<$family>>> {
                maps::reference(maps::$spliced.get_ptr_mut(key))
            }
            #[inline(always)]
            fn put_spliced(&self, key: &FlowKey<$family>, spliced: &Spliced<$family>) -> bool {
                maps::$spliced.insert(key, spliced, 0).is_ok()
            }
            #[inline(always)]
            fn drop_spliced(&self, key: &FlowKey<$family>) {
                let _ = maps::$spliced.remove(key);
            }
            #[inline(always)]
            fn answered(&self, key: &FlowKey<$family>) -> Option<Ref<Spliced<$family>>> {
                maps::reference(maps::$answered.get_ptr_mut(key))
            }
            #[inline(always)]
            fn put_answered(&self, key: &FlowKey<$family>, spliced: &Spliced<$family>) -> bool {
                maps::$answered.insert(key, spliced, 0).is_ok()
            }
            #[inline(always)]
            fn drop_answered(&self, key: &FlowKey<$family>) {
                let _ = maps::$answered.remove(key);
            }
            #[inline(always)]
            fn leg(&self, key: &FlowKey<$family>) -> Option<Ref<Leg<$family>>> {
                maps::reference(maps::$legs.get_ptr_mut(key))
            }
            #[inline(always)]
            fn put_leg(&self, key: &FlowKey<$family>, leg: &Leg<$family>) -> bool {
                maps::$legs.insert(key, leg, 0).is_ok()
            }
            #[inline(always)]
            fn new_leg(&self, key: &FlowKey<$family>, leg: &Leg<$family>) -> bool {
                maps::$legs.insert(key, leg, maps::NOEXIST).is_ok()
            }
            #[inline(always)]
            fn drop_leg(&self, key: &FlowKey<$family>) {
                let _ = maps::$legs.remove(key);
            }
        }
    };
}
tables!(V4, TCP4 UDP4 HALF4 CLOSING4 SNAT4 CLAIMS4 FRAGMENTS4 SPLICED4 ANSWERED4 LEGS4 SCRATCH4);
tables!(V6, TCP6 UDP6 HALF6 CLOSING6 SNAT6 CLAIMS6 FRAGMENTS6 SPLICED6 ANSWERED6 LEGS6 SCRATCH6);
