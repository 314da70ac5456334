//! A frame in a vector with one route, and the hook that it plays.

use super::Maps;
use crate::{
    bytes::{Packet, Route, RouteQuery, Vouched, Window},
    env::Tables,
    field, lb,
    network::Network,
    packet::checksum,
    place, splice,
    verdict::{Action, Verdict},
};
use splitter_common::{abi::*, http::HeadText};

/// `MAX_TAIL_CALL_CNT` of the kernel.
const TAIL_CALLS: u32 = 33;

/// A frame. `XDP`, `OUT`: which hook it plays, TC ingress when neither.
pub struct Frame<const XDP: bool, const OUT: bool = false> {
    pub bytes: Vec<u8>,
    pub ifindex: u32,
    pub tagged: bool,
    /// For another host, as TC is told; XDP looks at the address.
    pub foreign: bool,
    /// A process of the node sent it.
    pub local: bool,
    /// At egress: the interface by which it came.
    pub from: u32,
    pub segment: u32,
    /// The stack would hand the packet to whoever has its destination's address on a link.
    pub on_link: bool,
    pub route: Route,
    /// What the kernel says of its checksum.
    pub vouches: Option<Vouched>,
    /// Copies that were sent: out of an interface or into one, and bytes.
    pub clones: Vec<(Action, Vec<u8>)>,
    /// Destinations that have another route, as `RouteQuery` names them.
    pub routes: Vec<([u32; 4], Route)>,
    /// A program of the splice has seen it.
    spliced: bool,
}

impl<const XDP: bool> Frame<XDP> {
    pub fn new(bytes: &[u8], route: Route) -> Self {
        Self::at(bytes, route, 2, 2)
    }
}

impl Frame<false, true> {
    /// One that leaves by an interface, and came by another.
    pub fn leaving(bytes: &[u8], route: Route, ifindex: u32, from: u32) -> Self {
        Self::at(bytes, route, ifindex, from)
    }
}

impl<const XDP: bool, const OUT: bool> Frame<XDP, OUT> {
    fn at(bytes: &[u8], route: Route, ifindex: u32, from: u32) -> Self {
        Self {
            bytes: bytes.to_vec(),
            ifindex,
            from,
            tagged: false,
            foreign: false,
            local: false,
            segment: 0,
            on_link: false,
            route,
            vouches: None,
            clones: Vec::new(),
            routes: Vec::new(),
            spliced: false,
        }
    }

    /// Through the pipeline, and through the splice's programs as the entry points call them.
    pub fn run(&mut self, maps: &Maps) -> Action {
        let (judged, told) = (maps.judged(), maps.told());
        let action = self.pass(maps);
        maps.check_moved(&judged);
        // On http connections the node is an end itself, and takes what it keeps.
        let dropped = action == Action::Drop && !self.spliced;
        assert!(!dropped || maps.told() > told, "a packet was dropped, and nothing says why: {:02x?}", self.bytes);
        action
    }

    fn pass(&mut self, maps: &Maps) -> Action {
        match lb::carries(self, maps) {
            lb::Carries::Ipv4 => {
                let verdict = lb::ipv4(self, maps);
                self.go_on::<V4>(maps, verdict)
            }
            lb::Carries::Ipv6 => {
                let verdict = lb::ipv6(self, maps);
                self.go_on::<V6>(maps, verdict)
            }
            lb::Carries::Other => Action::Pass,
        }
    }

    /// Follows the tail calls, and lets go of the flow behind the last one.
    fn go_on<F: Network>(&mut self, maps: &Maps, verdict: Verdict) -> Action
    where
        Maps: Tables<F>,
    {
        let action = self.follow::<F>(maps, verdict);
        splice::release::<F, Maps>(maps);
        action
    }

    fn follow<F: Network>(&mut self, maps: &Maps, mut verdict: Verdict) -> Action
    where
        Maps: Tables<F>,
    {
        for _ in 0..TAIL_CALLS {
            let scratch = Tables::<F>::scratch(maps).expect("the fake has it");
            let of_layer_4 = matches!(verdict.action(), Action::Again | Action::Aside | Action::Reset | Action::Error(_) | Action::Drop);
            self.spliced |= !of_layer_4;
            let parsed = place!(scratch.parsed);
            verdict = match verdict.action() {
                Action::SpliceClient => splice::client(self, maps, parsed),
                Action::SpliceServer => splice::server(self, maps, parsed),
                Action::Again => lb::layer4(self, maps, parsed),
                Action::Aside => lb::aside(self, maps, parsed),
                Action::Body | Action::Read | Action::Step | Action::Over(_) | Action::Reset | Action::Error(_) if XDP => {
                    return Action::Pass;
                }
                Action::Read => splice::read(self, maps, parsed),
                Action::Body => splice::body(self, maps, parsed),
                Action::SpliceConnection => splice::connection(self, maps, parsed),
                Action::SpliceLeg => splice::leg(self, maps, parsed),
                Action::Step | Action::Over(_) | Action::Reset | Action::Error(_) => {
                    field!(scratch.step = verdict);
                    splice::steps(self, maps, parsed)
                }
                action => return action,
            };
        }
        panic!("more tail calls than the kernel allows");
    }
}

impl<const X: bool, const OUT: bool> Packet for Frame<X, OUT> {
    const XDP: bool = X;
    const EGRESS: bool = OUT;

    fn window<const N: usize>(&mut self, at: usize) -> Option<Window<'_, N>> {
        // SAFETY: in bounds; the window borrows the frame.
        (at + N <= self.bytes.len()).then(|| unsafe { Window::new(self.bytes.as_mut_ptr().add(at)) })
    }
    fn len(&self) -> u32 {
        self.bytes.len() as u32
    }
    fn ifindex(&self) -> u32 {
        self.ifindex
    }
    fn came_by(&self) -> u32 {
        match () {
            () if self.local => 0,
            () if OUT => self.from,
            () => self.ifindex,
        }
    }
    fn tagged(&self) -> bool {
        self.tagged
    }
    fn foreign(&self) -> bool {
        !X && self.foreign
    }
    fn segment(&self) -> u32 {
        self.segment
    }
    fn update_transport_checksum(&mut self, at: usize, addresses: u32, ports: u32, _ipv6: bool, udp: bool) {
        let Some(mut w) = self.window::<2>(at) else { return };
        let old: u16 = w.load::<u16, 0>();
        if udp && old == 0 {
            return;
        }
        let new = checksum::apply(old, checksum::fold(addresses as u64 + ports as u64));
        w.store::<u16, 0>(if udp && new == 0 { 0xffff } else { new });
    }
    fn hop_limit_changed(&mut self) {}
    fn route(&mut self, query: &RouteQuery) -> Route {
        self.routes.iter().find(|(dst, _)| *dst == query.dst).map_or(self.route, |(_, route)| *route)
    }
    fn on_link(&mut self, _query: &RouteQuery) -> bool {
        self.on_link
    }
    fn write<const N: usize>(&mut self, at: usize, bytes: &[u8; N]) -> bool {
        self.bytes.get_mut(at..at + N).map(|to| to.copy_from_slice(bytes)).is_some()
    }
    fn read<const N: usize>(&mut self, at: usize) -> Option<[u8; N]> {
        self.bytes.get(at..at + N)?.try_into().ok()
    }
    fn resize(&mut self, len: u32) -> bool {
        self.bytes.resize(len as usize, 0);
        true
    }
    fn copy_in(&mut self, at: u32, text: &mut HeadText, offset: u32, len: u32) -> bool {
        let Some(from) = self.bytes.get(at as usize..(at + len) as usize) else { return false };
        text[offset as usize..(offset + len) as usize].copy_from_slice(from);
        true
    }
    fn copy_out(&mut self, at: u32, text: &HeadText, offset: u32, len: u32) -> bool {
        let Some(to) = self.bytes.get_mut(at as usize..(at + len) as usize) else { return false };
        to.copy_from_slice(&text[offset as usize..(offset + len) as usize]);
        true
    }
    fn sum(text: &HeadText, offset: u32, len: u32) -> u64 {
        let bytes = &text[offset as usize..(offset + len) as usize];
        bytes.chunks(2).map(|pair| u16::from_ne_bytes([pair[0], *pair.get(1).unwrap_or(&0)]) as u64).sum()
    }
    fn sum_frame(&mut self, _text: &mut HeadText, from: u32, len: u32) -> u64 {
        let bytes = &self.bytes[from as usize..(from + len) as usize];
        bytes.chunks(2).map(|pair| u16::from_ne_bytes([pair[0], *pair.get(1).unwrap_or(&0)]) as u64).sum()
    }
    fn clone_to(&mut self, ifindex: u32) -> bool {
        self.clones.push((Action::Redirect(ifindex), self.bytes.clone()));
        true
    }
    fn clone_in(&mut self, ifindex: u32) -> bool {
        self.clones.push((Action::Inwards(ifindex), self.bytes.clone()));
        true
    }
    fn insert_after_link(&mut self, bytes: u32) -> bool {
        self.bytes.splice(14..14, std::iter::repeat_n(0, bytes as usize));
        true
    }
    fn checksum_pending(&mut self, _at: usize) -> bool {
        false
    }
    fn vouched(&mut self, _at: usize, unmade: bool) -> Vouched {
        // As a device that sums, for every other length; it is not asked to make any.
        let sum = self.bytes[14..].chunks(2).map(|pair| u16::from_ne_bytes([pair[0], *pair.get(1).unwrap_or(&0)]) as u32).sum();
        match self.vouches {
            Some(vouched) => vouched,
            None if !unmade && self.bytes.len().is_multiple_of(2) => Vouched::Sum(sum),
            None => Vouched::Nothing,
        }
    }
}
