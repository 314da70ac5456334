//! The kernel object with tables filled for a measurement.

use crate::{cleanup::Guard, lab};
use anyhow::{Context, Result, anyhow};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData},
};
use splitter_common::{
    abi::*,
    decide,
    filter::{self, Role},
};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

/// Port of the VIPs and of the backends.
pub const VIP_PORT: u16 = 80;
pub const BACKEND_PORT: u16 = 8080;
pub const CLIENT_PORT: u16 = 31337;

/// One filled object. Removed from bpffs when dropped, or when a signal ends the process.
pub struct Node {
    pub ebpf: Ebpf,
    _pins: Guard,
}

/// What to fill.
#[derive(Clone, Copy)]
pub struct Load {
    pub ipv6: bool,
    pub services: u32,
    pub flows: u32,
    /// Egress interface of all next hops.
    pub ifindex: u32,
    /// Ingress interface that XDP may forward from.
    pub ingress: u32,
    /// The flows are spliced, in the middle of a request's body.
    pub http: bool,
}

/// Address of the interface by which packets come in: what is not for it is not served.
pub const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// VIP of a service.
pub fn vip(ipv6: bool, i: u32) -> Addr {
    if ipv6 { v6(0xfd09, i + 9) } else { mapped((0x0ac8_0001 + i).to_be_bytes()) }
}
/// Address of a client: the last word counts.
pub fn client(ipv6: bool, i: u32) -> Addr {
    if ipv6 { v6(0xfd01, 0x0b00_0000 + i) } else { mapped((0x0b00_0000 + i).to_be_bytes()) }
}
/// Address of a backend: in no network that a lab has, so that the gateway leads to each.
pub fn backend(ipv6: bool, i: u32) -> Addr {
    if ipv6 { v6(0xfd02, 0x10 + i) } else { mapped((0x0a40_0010 + i).to_be_bytes()) }
}
fn v6(first: u16, last: u32) -> Addr {
    let mut addr = [0; 16];
    addr[..2].copy_from_slice(&first.to_be_bytes());
    addr[12..].copy_from_slice(&last.to_be_bytes());
    addr
}

/// Size of a table for that many flows, both directions, with room to spare.
pub(super) fn entries(flows: u32) -> u32 {
    262_144.max(flows * 2 + 65_536)
}

/// Numbers below `count` in an arbitrary order, the same at every call.
pub(super) fn shuffled(count: u32) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count).collect();
    let mut random = 88_172_645_463_325_252u64;
    for i in (1..order.len()).rev() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        order.swap(i, (random % (i as u64 + 1)) as usize);
    }
    order
}

pub(super) fn words4(addr: &Addr) -> [u32; 1] {
    [u32::from_ne_bytes([addr[12], addr[13], addr[14], addr[15]])]
}
pub(super) fn words6(addr: &Addr) -> [u32; 4] {
    std::array::from_fn(|i| u32::from_ne_bytes([addr[4 * i], addr[4 * i + 1], addr[4 * i + 2], addr[4 * i + 3]]))
}
pub(super) fn pair(source: u16, destination: u16) -> u32 {
    let ([a, b], [c, d]) = (source.to_be_bytes(), destination.to_be_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

/// A new folder on bpffs, removed with the guard.
pub(super) fn scratch_pins() -> Result<(PathBuf, Guard)> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let bpffs = Path::new("/sys/fs/bpf");
    // Swept with those of agents, whose names are alike.
    lab::sweep_paths(bpffs, "splitter-")?;
    let pins = bpffs.join(format!("splitter-spl-{}-object-{number}", std::process::id()));
    let guard = {
        let pins = pins.clone();
        Guard::new(move || {
            let _ = fs::remove_dir_all(pins);
        })
    };
    fs::create_dir_all(&pins).with_context(|| format!("cannot make {} (root, and bpffs mounted?)", pins.display()))?;
    Ok((pins, guard))
}

impl Node {
    /// Loads `objects/splitter` and fills it: every service has two versions of one backend each; flow `i` belongs to service `i % services`.
    pub fn load(objects: &Path, load: Load) -> Result<Self> {
        let (pins, guard) = scratch_pins()?;
        let object = fs::read(objects.join("splitter")).context("the kernel object")?;
        let entries = entries(load.flows);
        let family = if load.ipv6 { "6" } else { "4" };
        let tcp: &'static str = match (load.http, load.ipv6) {
            (false, false) => "TCP4",
            (false, true) => "TCP6",
            (true, false) => "SPLICED4",
            (true, true) => "SPLICED6",
        };
        let ebpf = EbpfLoader::new()
            .default_map_pin_directory(&pins)
            .map_max_entries(tcp, entries)
            .map_max_entries("BACKENDS", 131_072)
            .map_max_entries("COUNTERS", 2 * load.services.max(1) + 2)
            .map_max_entries("MOVED", 2 * load.services.max(1) + 2)
            .load(&object)
            .with_context(|| format!("cannot load the kernel object (IPv{family})"))?;
        let mut node = Self { ebpf, _pins: guard };
        node.fill(load)?;
        Ok(node)
    }

    /// A typed map of the object.
    pub fn map<'a, T>(&'a mut self, name: &str) -> Result<T>
    where
        T: TryFrom<&'a mut aya::maps::Map>,
        T::Error: std::fmt::Display,
    {
        let map = self.ebpf.map_mut(name).ok_or_else(|| anyhow!("the object has no map {name}"))?;
        T::try_from(map).map_err(|e| anyhow!("map {name}: {e}"))
    }

    fn fill(&mut self, load: Load) -> Result<()> {
        let mut xdp_ports = [0u64; XDP_PORTS as usize];
        let [a, b, c, d, e, f] = NODE_MAC;
        xdp_ports[(load.ingress % XDP_PORTS) as usize] =
            xdp_port(load.ingress, u32::from_ne_bytes([a, b, c, d]), u16::from_ne_bytes([e, f]));
        let config = Config {
            abi_version: ABI_VERSION,
            suspect_ticks: 1250,
            snat_port_first: 10_000,
            snat_port_count: 20_000,
            max_flows: load.flows,
            secret: [0; 2],
            cookies: [[0; 2]; 2],
            xdp_ports,
        };
        self.map::<Array<_, Config>>("CONFIG")?.set(0, config, 0)?;
        let iface = Iface { flags: iface_flag::XDP_TRANSMIT | iface_flag::XDP_FORWARD, mtu: 1500, ..Default::default() };
        self.map::<HashMap<_, u32, Iface>>("IFACES")?.insert(load.ifindex, iface, 0)?;
        self.services(load)?;
        self.flows(load)
    }

    /// Flows whose next packet would look up its next hop: it would cost many times what it should.
    pub fn without_next_hop(&mut self, load: Load) -> Result<usize> {
        fn count<F: Family>(node: &mut Node, map: &str, http: bool) -> Result<usize>
        where
            FlowKey<F>: aya::Pod,
            Flow<F>: aya::Pod,
            Spliced<F>: aya::Pod,
        {
            if http {
                let flows: HashMap<&mut MapData, FlowKey<F>, Spliced<F>> = node.map(map)?;
                return flows.iter().try_fold(0, |sum, entry| Ok(sum + usize::from(entry?.1.nexthop == 0)));
            }
            let flows: HashMap<&mut MapData, FlowKey<F>, Flow<F>> = node.map(map)?;
            let forward = |flow: &Flow<F>| !flow.is(flow_flag::REVERSE);
            flows
                .iter()
                .try_fold(0, |sum, entry| entry.map(|(_, flow)| sum + usize::from(forward(&flow) && flow.nexthop == 0)))
                .map_err(Into::into)
        }
        let map = match (load.http, load.ipv6) {
            (false, false) => "TCP4",
            (false, true) => "TCP6",
            (true, false) => "SPLICED4",
            (true, true) => "SPLICED6",
        };
        if load.ipv6 { count::<V6>(self, map, load.http) } else { count::<V4>(self, map, load.http) }
    }

    fn services(&mut self, load: Load) -> Result<()> {
        let mut words = vec![0u64; filter::WORDS as usize];
        let mut mark = |role, addr: &Addr, port: u16| {
            let (word, bits) = filter::bits_of(role, addr, port.to_be_bytes(), TCP);
            words[word as usize] |= if load.http { bits | filter::http(bits) } else { bits };
        };
        for i in 0..load.services {
            mark(Role::Frontend, &vip(load.ipv6, i), VIP_PORT);
            for b in 0..2 {
                mark(Role::Backend, &backend(load.ipv6, 2 * i + b), BACKEND_PORT);
            }
        }
        let mut bytes = Vec::with_capacity(words.len() * 8);
        words.iter().for_each(|word| bytes.extend(word.to_ne_bytes()));
        write_raw(self.ebpf.map("FILTER").context("FILTER")?, &bytes)?;
        {
            let mut backends: Array<_, Backend> = self.map("BACKENDS")?;
            for i in 0..2 * load.services {
                let value = Backend {
                    addr: backend(load.ipv6, i),
                    port: BACKEND_PORT.to_be_bytes(),
                    state: backend_state::READY,
                    version: i + 1,
                    service: i / 2 + 1,
                    ..Default::default()
                };
                backends.set(i + 1, value, 0)?;
            }
        }
        let ends = decide::intervals(&[90, 10]).context("weights")?;
        for i in 0..load.services {
            let mut service = Service { salt: u64::from(i) << 20 | 7, version_count: 2, ..Default::default() };
            for v in 0..2u32 {
                let id = 2 * i + v + 1;
                service.versions[v as usize] = VersionSlot { end: ends[v as usize], version: id, size: 1, table: id, ready: 1 };
            }
            self.map::<HashMap<_, u32, Service>>("SERVICES")?.insert(i + 1, service, 0)?;
            let key = FrontendKey { addr: vip(load.ipv6, i), port: VIP_PORT.to_be_bytes(), proto: TCP, pad: 0 };
            self.map::<HashMap<_, FrontendKey, u32>>("FRONTENDS")?.insert(key, i + 1, 0)?;
        }
        Ok(())
    }

    /// Both entries of every flow, in an order that the hash does not know.
    fn flows(&mut self, load: Load) -> Result<()> {
        for i in shuffled(load.flows) {
            let (id, front) = (2 * (i % load.services) + 1, vip(load.ipv6, i % load.services));
            let (from, to) = (client(load.ipv6, i), backend(load.ipv6, id - 1));
            if load.http {
                let ends = (&from, &front, &to);
                if load.ipv6 {
                    self.spliced::<V6>("SPLICED6", words6, id, ends)?
                } else {
                    self.spliced::<V4>("SPLICED4", words4, id, ends)?
                }
            } else if load.ipv6 {
                self.flow::<V6>("TCP6", words6, id, 0, &from, &front, &to)?;
            } else {
                self.flow::<V4>("TCP4", words4, id, 0, &from, &front, &to)?;
            }
        }
        Ok(())
    }

    /// A spliced flow whose client (the first of the ends) sends the body of a request.
    fn spliced<F: Family>(&mut self, map: &str, words: fn(&Addr) -> F::Words, id: u32, ends: (&Addr, &Addr, &Addr)) -> Result<()>
    where
        FlowKey<F>: aya::Pod,
        Spliced<F>: aya::Pod,
    {
        let (client, vip, backend) = (words(ends.0), words(ends.1), words(ends.2));
        let mut table: HashMap<&mut MapData, FlowKey<F>, Spliced<F>> = self.map(map)?;
        let value = Spliced {
            src: client,
            dst: backend,
            ports: pair(CLIENT_PORT, BACKEND_PORT),
            nexthop: 0,
            mss: 1460,
            owner: owner(id, 0),
            last: 0,
            seq_add: 77,
            ack_add: 99,
            ts_ecr_add: 0,
            ts_val: 0,
            ts_ecr: 0,
            next: 1_000,
            body_end: 1 << 20,
            request_at: 0,
            ack_base: 0,
            idle: [0; IDLE_LEGS],
            service: id.div_ceil(2),
            window: 0,
            stash: 0,
            stashed: 0,
            state: splice_state::ESTABLISHED,
            options: 0,
            scale: 0,
            tries: 0,
            chunks: Default::default(),
            trial: 0,
        };
        table.insert(FlowKey { src: client, dst: vip, ports: pair(CLIENT_PORT, VIP_PORT), proto: u32::from(TCP) }, value, 0)?;
        Ok(())
    }

    #[allow(clippy::too_many_arguments, reason = "one call site a family")]
    fn flow<F: Family>(
        &mut self,
        map: &str,
        words: fn(&Addr) -> F::Words,
        id: u32,
        last: u32,
        client: &Addr,
        vip: &Addr,
        backend: &Addr,
    ) -> Result<()>
    where
        FlowKey<F>: aya::Pod,
        Flow<F>: aya::Pod,
    {
        let (client, vip, backend) = (words(client), words(vip), words(backend));
        let proto = u32::from(TCP);
        let mut table: HashMap<&mut MapData, FlowKey<F>, Flow<F>> = self.map(map)?;
        let flow = Flow { peer: backend, peer_port: BACKEND_PORT.to_be(), nexthop: 0, owner: owner(id, 0), last };
        table.insert(FlowKey { src: client, dst: vip, ports: pair(CLIENT_PORT, VIP_PORT), proto }, flow, 0)?;
        let back = Flow { peer: vip, peer_port: VIP_PORT.to_be(), owner: owner(id, flow_flag::REVERSE), ..flow };
        table.insert(FlowKey { src: backend, dst: client, ports: pair(BACKEND_PORT, CLIENT_PORT), proto }, back, 0)?;
        Ok(())
    }
}

/// Writes the one value of an array map whose type is too large for aya's by-value interface.
fn write_raw(map: &aya::maps::Map, bytes: &[u8]) -> Result<()> {
    use std::os::fd::{AsFd, AsRawFd};
    #[repr(C)]
    struct Attr {
        fd: u32,
        pad: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let aya::maps::Map::Array(data) = map else { return Err(anyhow!("not an array")) };
    let key = 0u32;
    let attr =
        Attr { fd: data.fd().as_fd().as_raw_fd() as u32, pad: 0, key: (&raw const key) as u64, value: bytes.as_ptr() as u64, flags: 0 };
    const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
    // SAFETY: the attribute and what it points to live over the call; the value is as long as the map's.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_UPDATE_ELEM, &raw const attr, size_of::<Attr>()) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().into()) }
}
