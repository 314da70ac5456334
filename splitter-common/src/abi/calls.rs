//! Programs that are reached by tail call: in which slot of which map each stands. The kernel's hooks call by these numbers, the agent fills the slots by
//! [`CALLS`].

/// A program in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// `TC_CALLS` or `XDP_CALLS`.
    pub map: &'static str,
    pub slot: u32,
    pub program: &'static str,
}

/// The map of TC's programs, and its slots.
pub const TC_CALLS: &str = "TC_CALLS";
pub const TC_CALL_SLOTS: u32 = TC_ASIDE_CALLS + 4;
/// The map of XDP's programs, and its slots. Most stay empty: TC has all programs.
pub const XDP_CALLS: &str = "XDP_CALLS";
pub const XDP_CALL_SLOTS: u32 = XDP_SPLICE_CALLS + 16;

/// Slot of the programs for IPv6, of both maps.
pub const IPV6_CALL: u32 = 0;
/// The same at egress; TC only.
pub const IPV6_EGRESS_CALL: u32 = 1;
/// First slots of the programs of the splice: see [`splice_call`].
pub const TC_SPLICE_CALLS: u32 = 2;
pub const XDP_SPLICE_CALLS: u32 = 1;
/// First slot of the programs for what is no data of a flow: see [`aside_call`]. TC only.
pub const TC_ASIDE_CALLS: u32 = 34;

/// Programs of the splice, each of which there is for each IP version, and at egress again.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Client = 0,
    Server = 1,
    Steps = 2,
    /// It is layer 4's after all.
    Layer4 = 3,
    Read = 4,
    Connection = 5,
    Leg = 6,
    Body = 7,
}

/// Slot of a program of the splice, counted from the first.
#[inline(always)]
pub const fn splice_call(part: Part, ipv6: bool, egress: bool) -> u32 {
    part as u32 | (ipv6 as u32) << 3 | (egress as u32) << 4
}

/// Slot of a program for what is no data of a flow, counted from the first.
#[inline(always)]
pub const fn aside_call(ipv6: bool, egress: bool) -> u32 {
    ipv6 as u32 | (egress as u32) << 1
}

const fn tc(slot: u32, program: &'static str) -> Call {
    Call { map: TC_CALLS, slot, program }
}

const fn xdp(slot: u32, program: &'static str) -> Call {
    Call { map: XDP_CALLS, slot, program }
}

/// The four programs of each part, then those of XDP.
macro_rules! calls {
    (tc: $($part:ident $name:literal)*; xdp: $($xdp_part:ident $xdp_name:literal)*; others: $($other:expr),* $(,)?) => {
        /// Every program that is reached by tail call.
        pub const CALLS: &[Call] = &[
            $(
                tc(TC_SPLICE_CALLS + splice_call(Part::$part, false, false), concat!("http_", $name, "4")),
                tc(TC_SPLICE_CALLS + splice_call(Part::$part, true, false), concat!("http_", $name, "6")),
                tc(TC_SPLICE_CALLS + splice_call(Part::$part, false, true), concat!("out_", $name, "4")),
                tc(TC_SPLICE_CALLS + splice_call(Part::$part, true, true), concat!("out_", $name, "6")),
            )*
            $(
                xdp(XDP_SPLICE_CALLS + splice_call(Part::$xdp_part, false, false), concat!("xdp_", $xdp_name, "4")),
                xdp(XDP_SPLICE_CALLS + splice_call(Part::$xdp_part, true, false), concat!("xdp_", $xdp_name, "6")),
            )*
            $($other,)*
        ];
    };
}
calls! {
    tc: Client "client" Server "server" Steps "steps" Layer4 "layer4_" Read "read" Connection "conn" Leg "leg" Body "body";
    xdp: Client "client" Server "server" Layer4 "layer4_";
    others:
        tc(IPV6_CALL, "splitter_tc6"),
        tc(IPV6_EGRESS_CALL, "splitter_out6"),
        xdp(IPV6_CALL, "splitter_xdp6"),
        tc(TC_ASIDE_CALLS + aside_call(false, false), "net_in4"),
        tc(TC_ASIDE_CALLS + aside_call(true, false), "net_in6"),
        tc(TC_ASIDE_CALLS + aside_call(false, true), "net_out4"),
        tc(TC_ASIDE_CALLS + aside_call(true, true), "net_out6"),
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The slots as they always were: programs of an older agent, which are still attached while a new one starts, call by them.
    #[test]
    fn slots_are_golden() {
        let of = |program: &str| CALLS.iter().find(|call| call.program == program).map(|call| (call.map, call.slot));
        for (program, map, slot) in [
            ("splitter_tc6", "TC_CALLS", 0),
            ("splitter_out6", "TC_CALLS", 1),
            ("splitter_xdp6", "XDP_CALLS", 0),
            ("http_client4", "TC_CALLS", 2),
            ("http_layer4_4", "TC_CALLS", 5),
            ("http_body6", "TC_CALLS", 17),
            ("out_client4", "TC_CALLS", 18),
            ("out_conn6", "TC_CALLS", 31),
            ("net_in4", "TC_CALLS", 34),
            ("net_out6", "TC_CALLS", 37),
            ("xdp_client4", "XDP_CALLS", 1),
            ("xdp_layer4_6", "XDP_CALLS", 12),
        ] {
            assert_eq!(of(program), Some((map, slot)), "{program}");
        }
        assert_eq!((CALLS.len(), TC_CALL_SLOTS, XDP_CALL_SLOTS), (45, 38, 17));
    }

    #[test]
    fn no_two_share_a_slot_or_a_name() {
        assert_eq!(CALLS.iter().map(|call| (call.map, call.slot)).collect::<BTreeSet<_>>().len(), CALLS.len());
        assert_eq!(CALLS.iter().map(|call| call.program).collect::<BTreeSet<_>>().len(), CALLS.len());
        let slots = |map: &str| if map == TC_CALLS { TC_CALL_SLOTS } else { XDP_CALL_SLOTS };
        assert!(CALLS.iter().all(|call| call.slot < slots(call.map)));
        let tc = CALLS.iter().filter(|call| call.map == TC_CALLS).count();
        assert_eq!(tc as u32, TC_CALL_SLOTS, "none of TC's is empty");
    }
}
