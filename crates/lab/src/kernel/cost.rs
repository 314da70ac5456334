//! The measurement: nanoseconds a packet, the wrapper and an empty program subtracted.

use super::maps::{
    BACKEND_PORT, CLIENT_PORT, Load, NODE_MAC, Node, VIP_PORT, backend, client, entries, pair, shuffled, vip, words4, words6,
};
use anyhow::{Context, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun, TestRunOptions,
    maps::{Array, HashMap, MapData, ProgramArray},
    programs::{ProgramFd, SchedClassifier, Xdp},
};
use splitter_common::abi::{Addr, TCP};
use std::path::Path;

/// One row: which packets over which tables.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub name: &'static str,
    pub xdp: bool,
    pub ipv6: bool,
    pub services: u32,
    pub flows: u32,
    /// Packets of nobody's service.
    pub foreign: bool,
    /// The reference program is measured in the same rounds.
    pub reference: bool,
    /// Spliced flows.
    pub http: bool,
}

/// How long and where.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// Folder of the built objects `splitter` and `wrap`.
    pub objects: &'a Path,
    /// Interfaces of the calling thread's namespace; the route to the backends leaves by `egress`.
    pub ingress: u32,
    pub egress: u32,
    pub rounds: usize,
    /// Packets a round.
    pub repeat: u32,
}

/// Nanoseconds a packet, one value a round. The kernel tells whole ones.
#[derive(Clone, Debug, Default)]
pub struct Cost {
    pub rounds: Vec<f64>,
    /// Of the reference program; empty when it was not asked for.
    pub reference: Vec<f64>,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Cycle {
    packet: [u32; 24],
    first: u32,
    flows: u32,
    next: u32,
    ipv6: u32,
    vip: u32,
    vips: u32,
    next_vip: u32,
    pad: u32,
}
// SAFETY: integers only, no padding.
unsafe impl aya::Pod for Cycle {}

/// Programs on the way of the packets, by map and slot: see the object's `hook`.
const CALLS: [(&str, u32, &str); 14] = [
    ("TC_CALLS", 0, "splitter_tc6"),
    ("XDP_CALLS", 0, "splitter_xdp6"),
    ("TC_CALLS", 2, "http_client4"),
    ("TC_CALLS", 10, "http_client6"),
    // The first packet of a flow looks for its next hop here.
    ("TC_CALLS", 7, "http_conn4"),
    ("TC_CALLS", 15, "http_conn6"),
    ("TC_CALLS", 4, "http_steps4"),
    ("TC_CALLS", 12, "http_steps6"),
    ("XDP_CALLS", 1, "xdp_client4"),
    ("XDP_CALLS", 9, "xdp_client6"),
    // What the filter takes for http by chance.
    ("TC_CALLS", 5, "http_layer4_4"),
    ("TC_CALLS", 13, "http_layer4_6"),
    ("XDP_CALLS", 4, "xdp_layer4_4"),
    ("XDP_CALLS", 12, "xdp_layer4_6"),
];

/// Context of a test run: which interface the packet came by.
fn context(xdp: bool, ifindex: u32, len: usize) -> Vec<u8> {
    // struct xdp_md { data, data_end, data_meta, ingress_ifindex, ... }; struct __sk_buff: ifindex is the field at offset 40.
    let mut bytes = vec![0; if xdp { 24 } else { 192 }];
    if xdp {
        bytes[4..8].copy_from_slice(&(len as u32).to_ne_bytes());
        bytes[12..16].copy_from_slice(&ifindex.to_ne_bytes());
    } else {
        bytes[40..44].copy_from_slice(&ifindex.to_ne_bytes());
    }
    bytes
}

/// A TCP packet of 64 bytes (IPv6: 84), an acknowledgement with ten bytes of data; without data they are padding: of an http service the same data
/// once more would be a retransmission, which is looked at.
fn packet(ipv6: bool, src: &Addr, dst: &Addr, data: bool) -> Vec<u8> {
    let len = if data { 30 } else { 20 };
    let mut p = NODE_MAC.to_vec();
    p.extend([2, 0, 0, 0, 0, 1]);
    if ipv6 {
        p.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, len, 6, 64]);
        p.extend(src);
        p.extend(dst);
    } else {
        p.extend([8, 0, 0x45, 0, 0, 20 + len, 0, 1, 0x40, 0, 64, 6, 0, 0]);
        p.extend(&src[12..]);
        p.extend(&dst[12..]);
    }
    let at = p.len();
    p.extend(CLIENT_PORT.to_be_bytes());
    p.extend(VIP_PORT.to_be_bytes());
    p.extend([0, 0, 3, 232, 0, 0, 19, 137, 0x50, 0x10, 0xfa, 0, 0, 0, 0, 0]);
    p.extend(0..10u8);
    debug_assert_eq!(p.len(), at + 30);
    let sum = |bytes: &[u8]| bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
    let folded = |sum: u32| !(((sum & 0xffff) + (sum >> 16)) as u16 + ((((sum & 0xffff) + (sum >> 16)) >> 16) as u16));
    let addresses = if ipv6 { 22..54 } else { 26..34 };
    let tcp = folded(sum(&p[addresses]) + u32::from(TCP) + u32::from(len) + sum(&p[at..at + usize::from(len)]));
    p[at + 16..at + 18].copy_from_slice(&tcp.to_be_bytes());
    if !ipv6 {
        let header = folded(sum(&p[14..34]));
        p[24..26].copy_from_slice(&header.to_be_bytes());
    }
    p
}

/// Runs cases in the calling thread's network namespace, a round of each in turn, so that what the machine does meanwhile meets all alike.
pub fn run(setting: Setting, cases: &[Case]) -> Result<Vec<Cost>> {
    let mut loaded = cases.iter().map(|case| Loaded::new(setting, *case)).collect::<Result<Vec<_>>>()?;
    let mut costs = vec![Cost::default(); cases.len()];
    for _ in 0..setting.rounds {
        for (loaded, cost) in loaded.iter_mut().zip(&mut costs) {
            loaded.round(cost)?;
        }
    }
    Ok(costs)
}

/// A case with its programs and full tables.
struct Loaded {
    case: Case,
    repeat: u32,
    wrapper: Wrapper,
    target: ProgramFd,
    warm: ProgramFd,
    empty: ProgramFd,
    reference: Option<ProgramFd>,
    node: Node,
}

impl Loaded {
    fn new(setting: Setting, case: Case) -> Result<Loaded> {
        let Setting { objects, ingress, egress, .. } = setting;
        let load = Load { ipv6: case.ipv6, services: case.services, flows: case.flows, ifindex: egress, ingress, http: case.http };
        let mut node = Node::load(objects, load)?;
        for (calls, slot, name) in CALLS {
            let fd = program(&mut node.ebpf, name)?;
            node.map::<ProgramArray<_>>(calls)?.set(slot, &fd, 0)?;
        }
        let target = program(&mut node.ebpf, if case.xdp { "splitter_xdp" } else { "splitter_tc" })?;
        // XDP forwards what TC has looked up within the last second.
        let warm = program(&mut node.ebpf, "splitter_tc")?;
        let mut wrapper = Wrapper::load(setting, case)?;
        let empty = program(&mut wrapper.ebpf, if case.xdp { "empty_xdp" } else { "empty_tc" })?;
        let mut reference = None;
        if case.reference {
            wrapper.fill_reference(case, egress)?;
            reference = Some(program(&mut wrapper.ebpf, if case.xdp { "reference_xdp" } else { "reference_tc" })?);
        }
        let mut loaded = Loaded { case, repeat: setting.repeat, wrapper, target, warm, empty, reference, node };
        loaded.wrapper.run(&loaded.warm, false, loaded.all())?;
        let unknown = if case.foreign { 0 } else { loaded.node.without_next_hop(load)? };
        ensure!(unknown == 0, "{}: {unknown} flows have found no next hop", case.name);
        let (verdict, _, out) = loaded.wrapper.run(&loaded.target, case.xdp, 1)?;
        check(case, verdict, &out)?;
        if let Some(reference) = &loaded.reference {
            let (verdict, ..) = loaded.wrapper.run(reference, case.xdp, 1)?;
            ensure!(verdict == redirect(case.xdp), "{}: the reference program answered {}", case.name, verdict as i32);
        }
        Ok(loaded)
    }

    /// Packets that touch every flow.
    fn all(&self) -> u32 {
        self.case.flows.max(1_000)
    }

    fn round(&mut self, cost: &mut Cost) -> Result<()> {
        let (xdp, all, repeat) = (self.case.xdp, self.all(), self.repeat);
        self.wrapper.run(&self.warm, false, all)?;
        let with = self.wrapper.nanoseconds(&self.target, xdp, all, repeat)?;
        let without = self.wrapper.nanoseconds(&self.empty, xdp, 0, repeat)?;
        cost.rounds.push(with - without);
        if let Some(reference) = &self.reference {
            cost.reference.push(self.wrapper.nanoseconds(reference, xdp, all, repeat)? - without);
        }
        Ok(())
    }
}

/// The wrapper object with a case's packet.
struct Wrapper {
    ebpf: Ebpf,
    cycle: Cycle,
    packet: Vec<u8>,
    ingress: u32,
}

impl Wrapper {
    fn load(setting: Setting, case: Case) -> Result<Wrapper> {
        let object = std::fs::read(setting.objects.join("wrap")).context("the wrapper object")?;
        let flows = entries(case.flows);
        let mut loader = EbpfLoader::new();
        for (map, of) in [("REFERENCE4", !case.ipv6), ("REFERENCE6", case.ipv6)] {
            loader.map_max_entries(map, if of && case.reference { flows } else { 1_024 });
        }
        let mut ebpf = loader.load(&object).context("cannot load the wrapper")?;
        for wrapper in ["wrap_tc", "wrap_xdp"] {
            load_program(&mut ebpf, wrapper)?;
        }
        let destination = if case.foreign { vip(case.ipv6, 1 << 20) } else { vip(case.ipv6, 0) };
        let packet = packet(case.ipv6, &client(case.ipv6, 0), &destination, !case.http);
        Ok(Wrapper { ebpf, cycle: cycle(case, &packet, &destination)?, packet, ingress: setting.ingress })
    }

    /// Both directions of every flow, as in the real tables.
    fn fill_reference(&mut self, case: Case, egress: u32) -> Result<()> {
        let ports = (pair(CLIENT_PORT, VIP_PORT), pair(BACKEND_PORT, CLIENT_PORT));
        let (to, back) = (pair(CLIENT_PORT, BACKEND_PORT), pair(VIP_PORT, CLIENT_PORT));
        let ends = |i: u32| {
            let service = i % case.services;
            (client(case.ipv6, i), vip(case.ipv6, service), backend(case.ipv6, 2 * service))
        };
        if case.ipv6 {
            let map = self.ebpf.map_mut("REFERENCE6").context("REFERENCE6")?;
            let mut map: HashMap<&mut MapData, [u32; 10], [u32; 7]> = HashMap::try_from(map)?;
            for (client, vip, backend) in shuffled(case.flows).into_iter().map(ends) {
                let (client, vip, backend) = (words6(&client), words6(&vip), words6(&backend));
                let key = |a: [u32; 4], b: [u32; 4], ports| {
                    let mut key = [u32::from(TCP); 10];
                    key[..4].copy_from_slice(&a);
                    key[4..8].copy_from_slice(&b);
                    key[8] = ports;
                    key
                };
                map.insert(key(client, vip, ports.0), [backend[3], to, egress, 0, 0, 0, 0], 0)?;
                map.insert(key(backend, client, ports.1), [vip[3], back, egress, 0, 0, 0, 0], 0)?;
            }
        } else {
            let map = self.ebpf.map_mut("REFERENCE4").context("REFERENCE4")?;
            let mut map: HashMap<&mut MapData, [u32; 4], [u32; 4]> = HashMap::try_from(map)?;
            for (client, vip, backend) in shuffled(case.flows).into_iter().map(ends) {
                let ([client], [vip], [backend]) = (words4(&client), words4(&vip), words4(&backend));
                map.insert([client, vip, ports.0, u32::from(TCP)], [backend, to, egress, 0], 0)?;
                map.insert([backend, client, ports.1, u32::from(TCP)], [vip, back, egress, 0], 0)?;
            }
        }
        Ok(())
    }

    /// Verdict, nanoseconds a packet with the wrapper's own, the last packet.
    fn run(&mut self, program: &ProgramFd, xdp: bool, repeat: u32) -> Result<(u32, f64, Vec<u8>)> {
        Array::<_, Cycle>::try_from(self.ebpf.map_mut("CYCLE").context("CYCLE")?)?.set(0, self.cycle, 0)?;
        let calls = if xdp { "TARGET_XDP" } else { "TARGET_TC" };
        ProgramArray::try_from(self.ebpf.map_mut(calls).context(calls)?)?.set(0, program, 0)?;
        test_run(&mut self.ebpf, if xdp { "wrap_xdp" } else { "wrap_tc" }, xdp, &self.packet, self.ingress, repeat)
    }

    /// The same after `warm` packets that are not counted.
    fn nanoseconds(&mut self, program: &ProgramFd, xdp: bool, warm: u32, repeat: u32) -> Result<f64> {
        if warm > 0 {
            self.run(program, xdp, warm)?;
        }
        Ok(self.run(program, xdp, repeat)?.1)
    }
}

fn cycle(case: Case, packet: &[u8], destination: &Addr) -> Result<Cycle> {
    // Flow i belongs to service i modulo the number of services: both counters turn over together only then.
    let vips = case.services.min(case.flows).max(1);
    ensure!(case.flows.is_multiple_of(vips), "{} flows over {vips} services", case.flows);
    let last_word = |addr: &Addr| u32::from_be_bytes([addr[12], addr[13], addr[14], addr[15]]);
    let mut cycle = Cycle {
        packet: [0; 24],
        first: last_word(&client(case.ipv6, 0)),
        flows: case.flows.max(1),
        next: 0,
        ipv6: case.ipv6.into(),
        vip: last_word(destination),
        vips: if case.foreign { 1 } else { vips },
        next_vip: 0,
        pad: 0,
    };
    let mut padded = vec![0u8; 2];
    padded.extend(packet);
    padded.resize(96, 0);
    for (word, chunk) in cycle.packet.iter_mut().zip(padded.chunks_exact(4)) {
        *word = u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
    }
    Ok(cycle)
}

fn redirect(xdp: bool) -> u32 {
    if xdp { 4 } else { 7 }
}

/// The packet must have been translated and redirected, or left alone: a cheap wrong answer is no result.
fn check(case: Case, verdict: u32, out: &[u8]) -> Result<()> {
    let port = if case.ipv6 { 56 } else { 36 };
    let port = u16::from_be_bytes([out[port], out[port + 1]]);
    match (case.foreign, verdict) {
        (true, 2) if case.xdp => Ok(()),
        (true, v) if !case.xdp && v as i32 == -1 => Ok(()),
        (false, v) if v == redirect(case.xdp) && port == BACKEND_PORT => Ok(()),
        _ => bail!("{}: the program answered {} and the destination port is {port}", case.name, verdict as i32),
    }
}

fn load_program(ebpf: &mut Ebpf, name: &str) -> Result<()> {
    let program = ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
    if program.fd().is_ok() {
        return Ok(());
    }
    match program {
        aya::programs::Program::Xdp(p) => p.load(),
        aya::programs::Program::SchedClassifier(p) => p.load(),
        _ => bail!("{name} is neither XDP nor TC"),
    }
    .with_context(|| format!("cannot load {name}"))
}

fn program(ebpf: &mut Ebpf, name: &str) -> Result<ProgramFd> {
    load_program(ebpf, name)?;
    let program = ebpf.program(name).with_context(|| format!("no program {name}"))?;
    Ok(program.fd()?.try_clone()?)
}

fn test_run(ebpf: &mut Ebpf, name: &str, xdp: bool, data: &[u8], ifindex: u32, repeat: u32) -> Result<(u32, f64, Vec<u8>)> {
    let mut out = vec![0; 256];
    let context = context(xdp, ifindex, data.len());
    let options = TestRunOptions { data_in: Some(data), data_out: Some(&mut out), ctx_in: Some(&context), repeat, ..Default::default() };
    let result = if xdp {
        let program: &mut Xdp = ebpf.program_mut(name).context("wrapper")?.try_into()?;
        program.test_run(options)?
    } else {
        let program: &mut SchedClassifier = ebpf.program_mut(name).context("wrapper")?.try_into()?;
        program.test_run(options)?
    };
    Ok((result.return_value, result.duration.as_nanos() as f64, out))
}
