//! Spliced flows on a host: clients and backends that keep their own TCP numbers, and the node between them. Every packet that comes out
//! is read by `etherparse`, every number is checked by the end that gets it, and every lab ends with all stashes and locks given back.

mod again;
mod checksums;
mod chunked;
mod close;
mod collide;
mod failure;
mod first;
mod fragments;
mod guess;
mod handshake;
mod heads;
mod lock;
mod long;
mod numbers;
mod order;
mod pieces;
mod pin;
mod pinned;
mod replay;
mod responses;
mod slots;
mod stack;
mod stamps;
mod switch;
mod tail;
mod trace;
mod trial;

use super::{BACKEND_SIDE, CLIENT_SIDE, ROUTE, addr, backend, frames};
use crate::{
    bytes::Route,
    fake::{Frame, Maps},
    packet::tcp::{ACK, FIN, RST, SYN},
    verdict::Action,
};
use etherparse::{PacketBuilder, SlicedPacket, TcpOptionElement as Opt, TransportSlice};
use splitter_common::{
    abi::*,
    http::{HEAD_LIMIT, name_bit},
};
use std::{
    cell::{Cell, RefCell},
    net::{IpAddr, SocketAddr},
};

const PSH: u8 = 8;
/// Longest head that is read.
const LIMIT: usize = HEAD_LIMIT as usize;
/// Segment size that clients are told.
const MSS: u16 = 1400;
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
/// Goes to version 2 by a rule.
const GET2: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nx-v: 2\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

/// A TCP segment on the wire.
#[derive(Clone, Debug, PartialEq)]
struct Wire {
    src: SocketAddr,
    dst: SocketAddr,
    flags: u8,
    seq: u32,
    ack: u32,
    window: u16,
    options: Vec<Opt>,
    payload: Vec<u8>,
}

impl Wire {
    fn build(&self) -> Vec<u8> {
        let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let ip = match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => link.ipv4(src.octets(), dst.octets(), 64),
            (IpAddr::V6(src), IpAddr::V6(dst)) => link.ipv6(src.octets(), dst.octets(), 64),
            _ => panic!("mixed families"),
        };
        let mut tcp = ip.tcp(self.src.port(), self.dst.port(), self.seq, self.window).options(&self.options).expect("they fit");
        for (flag, set) in [(SYN, 0), (FIN, 1), (RST, 2), (PSH, 3), (ACK, 4)] {
            if self.flags & flag == 0 {
                continue;
            }
            tcp = match set {
                0 => tcp.syn(),
                1 => tcp.fin(),
                2 => tcp.rst(),
                3 => tcp.psh(),
                _ => tcp.ack(self.ack),
            };
        }
        let mut out = Vec::new();
        tcp.write(&mut out, &self.payload).expect("fits");
        out
    }

    /// Checks every checksum.
    fn parse(bytes: &[u8]) -> Self {
        let seen = frames::parse(bytes);
        let packet = SlicedPacket::from_ethernet(bytes).expect("a valid frame");
        let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("no TCP") };
        let bits = [(tcp.syn(), SYN), (tcp.fin(), FIN), (tcp.rst(), RST), (tcp.psh(), PSH), (tcp.ack(), ACK)];
        Self {
            src: seen.src,
            dst: seen.dst,
            flags: bits.iter().filter(|(set, _)| *set).map(|(_, flag)| flag).sum(),
            seq: tcp.sequence_number(),
            ack: tcp.acknowledgment_number(),
            window: tcp.window_size(),
            options: tcp.options_iterator().map(|option| option.expect("a valid option")).collect(),
            payload: seen.payload,
        }
    }

    /// With other options, but for timestamps.
    fn saying(mut self, options: &[Opt]) -> Self {
        let stamps = self.options.iter().position(|option| matches!(option, Opt::Timestamp(..)));
        // With the two NOPs before them.
        let stamps = stamps.map_or_else(Vec::new, |i| self.options[i.saturating_sub(2)..=i].to_vec());
        self.options = [options, &stamps].concat();
        self
    }

    /// Without timestamps.
    fn unstamped(mut self) -> Self {
        self.options.retain(|option| !matches!(option, Opt::Timestamp(..)));
        self
    }

    /// Length in sequence space.
    fn len(&self) -> u32 {
        self.payload.len() as u32 + (self.flags & SYN != 0) as u32 + (self.flags & FIN != 0) as u32
    }
}

/// A service of `mode: http`: version 1 (weight 100) has backends 1 and 2, version 2 (weight 0) has 3, version 3 (weight 0) has 4. The
/// header `x-v` with `1`, `2` or `3` names the version, the header `user` is the key.
struct Http {
    maps: Maps,
    vip: SocketAddr,
    client: SocketAddr,
    last: Cell<Action>,
    /// The test also has flows of layer 4, which may be left.
    layer4: Cell<bool>,
    /// Both sides have TCP timestamps.
    stamps: bool,
    /// Legs go through the node's stack: what backends send is seen at egress of the client's side.
    stack: Cell<bool>,
    /// Backends that are processes of the node, by number; the same.
    own: &'static [u32],
    /// Milliseconds since the beginning: one for each packet.
    clock: Cell<u32>,
    /// The next client's first number.
    isn: Cell<u32>,
    /// Acknowledgements for legs that a request has just left, which [`Http::run`] leaves out.
    told: RefCell<Vec<Wire>>,
}

impl Http {
    fn new(ipv6: bool) -> Self {
        Self::with(ipv6, false)
    }

    fn with(ipv6: bool, stamps: bool) -> Self {
        let maps = Maps::new();
        for id in 1..=4 {
            maps.add_backend(id, addr(backend(ipv6, id).ip()), 8080, TCP);
        }
        let vip = if ipv6 { "[fd09::9]:80" } else { "10.9.9.9:80" }.parse::<SocketAddr>().expect("an address");
        let client = if ipv6 { "[fd01::2]:40000" } else { "10.1.0.2:40000" }.parse().expect("an address");
        let lab = Self {
            maps,
            vip,
            client,
            last: Cell::new(Action::Pass),
            layer4: Cell::new(false),
            stamps,
            stack: Cell::new(false),
            own: &[],
            clock: Cell::new(0),
            isn: Cell::new(1000),
            told: RefCell::default(),
        };
        lab.serve(&[(100, &[1, 2]), (0, &[3]), (0, &[4])]);
        lab
    }

    /// Weights and backends of the versions.
    fn serve(&self, versions: &[(u32, &[u32])]) {
        let frontend = FrontendKey { addr: addr(self.vip.ip()), port: self.vip.port().to_be_bytes(), proto: TCP, pad: 0 };
        self.maps.serve(1, frontend, split_by::CONNECTION, versions);
        self.maps.serve_http(1, MSS, Some(rules()));
        let flags = if self.stamps { service_flag::STAMPS } else { 0 } | if self.stack.get() { service_flag::STACK } else { 0 };
        self.maps.change_service(1, |service| service.flags = flags);
    }

    /// Both families, with and without timestamps.
    fn redirected() -> [Self; 4] {
        [(false, false), (true, false), (false, true), (true, true)].map(|(ipv6, stamps)| Self::with(ipv6, stamps))
    }

    /// Legs that go through the node's stack.
    fn stacked(ipv6: bool, stamps: bool) -> Self {
        let lab = Self::with(ipv6, stamps);
        lab.stack.set(true);
        lab.serve(&[(100, &[1, 2]), (0, &[3]), (0, &[4])]);
        lab
    }

    /// Some backends are processes of the node.
    fn at_home(ipv6: bool, own: &'static [u32]) -> Self {
        let mut lab = Self::with(ipv6, !ipv6);
        lab.own = own;
        lab
    }

    /// All ways that legs take, with both families each.
    fn both() -> Vec<Self> {
        let mut all = Vec::from(Self::redirected());
        all.extend([Self::stacked(false, false), Self::stacked(true, true)]);
        all.extend([Self::at_home(false, &[1, 2, 3, 4]), Self::at_home(true, &[1, 2, 3, 4])]);
        all.extend([Self::at_home(false, &[1, 2]), Self::at_home(true, &[3, 4])]);
        all
    }

    fn ipv6(&self) -> bool {
        self.vip.is_ipv6()
    }

    /// A packet into the node; the packets that come out. What goes by, or back, has the link header that it needs.
    fn run(&self, wire: &Wire, side: u32) -> Vec<Wire> {
        self.run_bytes(&wire.build(), side)
    }

    fn run_bytes(&self, bytes: &[u8], side: u32) -> Vec<Wire> {
        let local = self.own.iter().any(|id| backend(self.ipv6(), *id).ip() == source(bytes));
        if side == CLIENT_SIDE || !local && !self.stack.get() {
            let mut frame = Frame::<false>::new(bytes, ROUTE);
            frame.ifindex = side;
            return self.pass(frame, side);
        }
        if !local {
            let mut frame = Frame::<false>::new(bytes, ROUTE);
            frame.ifindex = side;
            assert_eq!((frame.run(&self.maps), frame.bytes == bytes), (Action::Pass, true), "left alone where it comes in");
        }
        let mut frame = Frame::leaving(&turned(bytes), ROUTE, CLIENT_SIDE, side);
        frame.local = local;
        self.pass(frame, CLIENT_SIDE)
    }

    fn pass<const OUT: bool>(&self, mut frame: Frame<false, OUT>, side: u32) -> Vec<Wire> {
        let bytes = frame.bytes.clone();
        // What is longer than a packet has come in several.
        frame.segment = if bytes.len() > 1514 { 1400 } else { 0 };
        frame.routes = self.routes();
        let action = frame.run(&self.maps);
        self.last.set(action);
        let mut out: Vec<Wire> = Vec::new();
        for (way, clone) in &frame.clones {
            match way {
                Action::Inwards(ifindex) => self.enters(*ifindex, clone),
                Action::Redirect(CLIENT_SIDE) => assert_eq!(clone[..12], OUTWARDS),
                way => assert_eq!(*way, Action::Redirect(BACKEND_SIDE)),
            }
            out.push(Wire::parse(clone));
        }
        match action {
            Action::Drop => return out,
            Action::Redirect(CLIENT_SIDE) if !self.own.is_empty() => assert_eq!(frame.bytes[..12], OUTWARDS),
            Action::Redirect(to) | Action::RedirectPeer(to) => {
                assert_eq!((to, &frame.bytes[..12]), (BACKEND_SIDE, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12][..]));
            }
            Action::Return(to) if !OUT => assert_eq!((to, &frame.bytes[..12]), (side, &turned(&bytes)[..12])),
            Action::Return(to) | Action::Inwards(to) => self.enters(to, &frame.bytes),
            Action::Pass if self.stack.get() || !self.own.is_empty() => assert!(frame.bytes[..12] == bytes[..12] || !OUT),
            Action::Pass => assert_eq!(frame.bytes, bytes, "untouched"),
            other => panic!("{other:?}"),
        }
        out.push(Wire::parse(&frame.bytes));
        if out.len() > 1 && !OUT && side == CLIENT_SIDE && !Wire::parse(&bytes).payload.is_empty() {
            let told = |wire: &Wire| wire.flags == ACK && wire.payload.is_empty() && wire.dst != self.client;
            let (told, others) = out.into_iter().partition(told);
            *self.told.borrow_mut() = told;
            out = others;
        }
        out
    }

    /// Where some backends are processes of the node: the stack delivers to these, and the client has a way of its own.
    fn routes(&self) -> Vec<([u32; 4], Route)> {
        let word = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().expect("four bytes"));
        let words = |ip| match ip {
            IpAddr::V4(v4) => [u32::from_ne_bytes(v4.octets()), 0, 0, 0],
            IpAddr::V6(v6) => core::array::from_fn(|i| word(&v6.octets()[4 * i..4 * i + 4])),
        };
        let macs = core::array::from_fn(|i| word(&OUTWARDS[4 * i..4 * i + 4]));
        let mut routes: Vec<_> = self.own.iter().map(|id| (words(backend(self.ipv6(), *id).ip()), Route::Stack)).collect();
        if !routes.is_empty() {
            routes.push((words(self.client.ip()), Route::Found { ifindex: CLIENT_SIDE, macs, mtu: 1500 }));
        }
        routes
    }

    /// What comes in by the client's side is for that interface, and nobody's there.
    fn enters(&self, ifindex: u32, bytes: &[u8]) {
        assert_eq!((ifindex, &bytes[..12]), (CLIENT_SIDE, &turned(&OUTWARDS)[..]), "{:?}", Wire::parse(bytes));
        let mut frame = Frame::<false>::new(bytes, ROUTE);
        frame.ifindex = ifindex;
        assert_eq!((frame.run(&self.maps), frame.bytes == bytes), (Action::Pass, true), "it is nobody's");
    }

    /// The acknowledgement that went to the leg which the last request has left.
    fn told(&self) -> Wire {
        one(self.told.take())
    }

    /// A client before its handshake.
    fn stranger(&self) -> End<'_> {
        End {
            lab: self,
            me: self.client,
            peer: self.vip,
            side: CLIENT_SIDE,
            seq: 1000,
            ack: 0,
            window: 64_000,
            clock: self.stamps.then_some(5000),
            recent: 0,
        }
    }

    /// A first number that no client has had before.
    fn fresh(&self) -> u32 {
        self.isn.replace(self.isn.get() + 250_000)
    }

    /// A client whose SYN had options, after its handshake.
    fn client_with(&self, isn: u32, options: &[Opt]) -> End<'_> {
        let mut client = End { seq: isn, ..self.stranger() };
        let out = self.run(&client.wire(SYN, &[]).saying(options), CLIENT_SIDE);
        let [syn_ack] = &out[..] else { panic!("{out:?}") };
        (client.seq, client.ack) = (client.seq.wrapping_add(1), syn_ack.seq);
        client.hear(syn_ack);
        assert_eq!(client.send(ACK, &[]), []);
        client
    }

    fn client(&self) -> End<'_> {
        self.client_with(
            self.fresh(),
            &[Opt::MaximumSegmentSize(1460), Opt::SelectiveAcknowledgementPermitted, Opt::Noop, Opt::WindowScale(7)],
        )
    }

    /// The backend that a SYN goes to, and its SYN-ACK.
    fn backend_of(&self, syn: &Wire) -> (End<'_>, Wire) {
        assert_eq!((syn.flags, &syn.payload[..]), (SYN, &[][..]), "{syn:?}");
        assert_ne!(syn.dst, self.vip);
        let ack = syn.seq.wrapping_add(1);
        let stamps = stamps_of(syn);
        // Clocks of backends begin anywhere, and wrap.
        let clock = stamps.map(|_| u32::from(syn.dst.port()).wrapping_mul(syn.seq) | 0xffff_0000);
        let recent = stamps.map_or(0, |(val, _)| val);
        let (seq, window) = (0xffff_fff0, 500);
        let end = End { lab: self, me: syn.dst, peer: syn.src, side: BACKEND_SIDE, seq, ack, window, clock, recent };
        let options = [Opt::MaximumSegmentSize(1460), Opt::SelectiveAcknowledgementPermitted, Opt::WindowScale(7)];
        // A SYN's window is not scaled (RFC 7323, 2.2).
        let syn_ack = Wire { window: 65_160, ..end.wire(SYN | ACK, &[]).saying(&options) };
        (End { seq: end.seq.wrapping_add(1), ..end }, syn_ack)
    }

    /// A backend answers a SYN, and gets `request`.
    fn accept(&self, syn: &Wire, request: &[u8]) -> End<'_> {
        let (mut server, syn_ack) = self.backend_of(syn);
        let out = self.run(&syn_ack, BACKEND_SIDE);
        assert_eq!(payloads(&out), request);
        out.iter().for_each(|wire| server.hear(wire));
        server
    }

    /// A client's request opens a leg.
    fn open(&self, client: &mut End<'_>, request: &[u8]) -> End<'_> {
        let syn = one(client.say(request));
        self.accept(&syn, request)
    }

    /// A response, and its acknowledgement.
    fn respond(&self, client: &mut End<'_>, server: &mut End<'_>, response: &[u8]) {
        let seen = one(server.say(response));
        assert_eq!(seen.payload, response);
        client.hear(&seen);
        server.hear(&one(client.send(ACK, &[])));
    }

    /// A client with an open leg to version 1, whose first response is over.
    fn ready(&self) -> (End<'_>, End<'_>) {
        let mut client = self.client();
        let mut server = self.open(&mut client, GET);
        self.respond(&mut client, &mut server, OK);
        (client, server)
    }

    fn version_of(&self, end: &End<'_>) -> u32 {
        (1..=4).find(|id| backend(self.ipv6(), *id) == end.me).map_or(0, |id| [1, 1, 2, 3][id as usize - 1])
    }

    fn id_of(&self, end: &End<'_>) -> u32 {
        (1..=4).find(|id| backend(self.ipv6(), *id) == end.me).expect("a backend")
    }

    /// Evicts the leg to a backend.
    fn evict(&self, server: &End<'_>) {
        let id = self.id_of(server);
        if self.ipv6() { self.maps.v6.forget_legs(id) } else { self.maps.v4.forget_legs(id) }
    }

    /// Does what the agent does with pinned connections that have to go.
    fn ask_for_the_end(&self) {
        if self.ipv6() { self.maps.v6.mark_spliced(splice_flag::RESET) } else { self.maps.v4.mark_spliced(splice_flag::RESET) }
    }

    /// Entries of `SPLICED` and `LEGS`.
    fn entries(&self) -> [usize; 2] {
        if self.ipv6() { self.maps.v6.spliced_sizes() } else { self.maps.v4.spliced_sizes() }
    }

    /// Entries of `ANSWERED`.
    fn answered(&self) -> usize {
        if self.ipv6() { self.maps.v6.answered_size() } else { self.maps.v4.answered_size() }
    }

    fn counted(&self, reason: Reason) -> u64 {
        self.maps.counted(reason)
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        let sizes = if self.ipv6() { self.maps.v6.sizes() } else { self.maps.v4.sizes() };
        if !std::thread::panicking() {
            let expected = if self.layer4.get() { sizes } else { [0; 5] };
            assert_eq!((self.maps.taken(), sizes), (0, expected), "stashes taken, and entries of layer 4");
            assert_eq!(self.maps.locks_held(), 0);
        }
    }
}

/// Bits of a service that say what a lab is.
const KEPT: u8 = service_flag::STAMPS | service_flag::STACK;
/// Link header of what leaves for the client: see [`Wire::build`].
const OUTWARDS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

/// Source of a packet.
fn source(bytes: &[u8]) -> IpAddr {
    match bytes[12..14] {
        [8, 0] => IpAddr::from(<[u8; 4]>::try_from(&bytes[26..30]).expect("four bytes")),
        _ => IpAddr::from(<[u8; 16]>::try_from(&bytes[22..38]).expect("sixteen bytes")),
    }
}

/// A frame whose link header is turned round.
fn turned(bytes: &[u8]) -> Vec<u8> {
    [&bytes[6..12], &bytes[..6], &bytes[12..]].concat()
}

/// One end of a TCP connection, as its own stack sees it.
#[derive(Clone)]
struct End<'a> {
    lab: &'a Http,
    me: SocketAddr,
    peer: SocketAddr,
    side: u32,
    seq: u32,
    ack: u32,
    window: u16,
    /// What its clock showed at the beginning; `None`: no timestamps.
    clock: Option<u32>,
    /// TS.Recent (RFC 7323, 4.3).
    recent: u32,
}

impl End<'_> {
    fn wire(&self, flags: u8, payload: &[u8]) -> Wire {
        let ack = if flags & ACK != 0 { self.ack } else { 0 };
        let mut options = Vec::new();
        if let (Some(val), true) = (self.now(), flags & RST == 0) {
            options = vec![Opt::Noop, Opt::Noop, Opt::Timestamp(val, self.recent)];
        }
        self.lab.clock.set(self.lab.clock.get() + 1);
        let payload = payload.to_vec();
        Wire { src: self.me, dst: self.peer, flags, seq: self.seq, ack, window: self.window, options, payload }
    }

    /// What its clock shows.
    fn now(&self) -> Option<u32> {
        self.clock.map(|clock| clock.wrapping_add(self.lab.clock.get()))
    }

    /// Sends, and remembers what was sent.
    fn send(&mut self, flags: u8, payload: &[u8]) -> Vec<Wire> {
        let wire = self.wire(flags, payload);
        self.seq = self.seq.wrapping_add(wire.len());
        self.lab.run(&wire, self.side)
    }

    fn say(&mut self, payload: &[u8]) -> Vec<Wire> {
        self.send(ACK | PSH, payload)
    }

    /// Sends the last `payload` once more.
    fn again(&self, flags: u8, payload: &[u8]) -> Vec<Wire> {
        let mut wire = self.wire(flags, payload);
        wire.seq = wire.seq.wrapping_sub(wire.len());
        self.lab.run(&wire, self.side)
    }

    /// Takes a segment that comes next, and acknowledges all that was sent.
    fn hear(&mut self, wire: &Wire) {
        assert_eq!((wire.src, wire.dst, wire.seq), (self.peer, self.me, self.ack), "{wire:?}");
        assert!(wire.flags & ACK == 0 || wire.ack == self.seq, "{} is not acknowledged by {wire:?}", self.seq);
        self.ack = self.ack.wrapping_add(wire.len());
        let lost = self.lab.counted(Reason::Unstamped) != 0 && stamps_of(wire).is_none();
        if let (Some(now), true, false) = (self.now(), wire.flags & RST == 0, lost) {
            let (val, ecr) = stamps_of(wire).unwrap_or_else(|| panic!("no timestamps: {wire:?}"));
            let age = now.wrapping_sub(ecr);
            assert!(age <= self.lab.clock.get(), "an echo of {ecr} at {now}");
            assert!(self.recent == 0 || (val.wrapping_sub(self.recent) as i32) >= 0, "the clock went back from {} to {val}", self.recent);
            self.recent = val;
        }
    }
}

fn stamps_of(wire: &Wire) -> Option<(u32, u32)> {
    wire.options.iter().find_map(|option| if let Opt::Timestamp(val, ecr) = option { Some((*val, *ecr)) } else { None })
}

fn one(mut out: Vec<Wire>) -> Wire {
    assert_eq!(out.len(), 1, "{out:?}");
    out.remove(0)
}

fn payloads(out: &[Wire]) -> Vec<u8> {
    out.iter().flat_map(|wire| &wire.payload).copied().collect()
}

/// Rules of [`Http`].
fn rules() -> Box<HttpRules> {
    let mut rules = Box::new(HttpRules::empty());
    let text = b"x-v123user";
    rules.pool[..text.len()].copy_from_slice(text);
    rules.pool_len = text.len() as u32;
    rules.name_filter = name_bit(b"x-v") | name_bit(b"user");
    (rules.rule_count, rules.predicate_count, rules.name_count, rules.key_name) = (3, 3, 2, 1);
    for i in 0..3u8 {
        rules.predicates[i as usize] = HttpPredicate { at: 3 + i as u16, len: 1, kind: http_match::EXACT };
        rules.rules[i as usize] = HttpRule { mask: 1 << i, version: i as u32 + 1, pad: 0 };
    }
    rules.names[0] = HttpName { at: 0, len: 3, subject: http_subject::HEADER, first: 0, count: 3, pad: 0 };
    rules.names[1] = HttpName { at: 6, len: 4, subject: http_subject::HEADER, first: 3, count: 0, pad: 0 };
    rules
}
