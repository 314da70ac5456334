//! Where programs can be attached, and the pins that keep them there: below `links` and `clsact`, which attach them.

use super::interfaces::XdpMode;

pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Where a program can be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    TcxIngress,
    TcxEgress,
    ClsactIngress,
    ClsactEgress,
    XdpNative,
    XdpGeneric,
}

impl Hook {
    pub const fn name(self) -> &'static str {
        match self {
            Hook::TcxIngress => "tcx-ingress",
            Hook::TcxEgress => "tcx-egress",
            Hook::ClsactIngress => "clsact-ingress",
            Hook::ClsactEgress => "clsact-egress",
            Hook::XdpNative => "xdp-native",
            Hook::XdpGeneric => "xdp-generic",
        }
    }

    pub fn is_clsact(self) -> bool {
        matches!(self, Hook::ClsactIngress | Hook::ClsactEgress)
    }

    pub fn xdp(mode: XdpMode) -> Option<Self> {
        match mode {
            XdpMode::Off => None,
            XdpMode::Native => Some(Hook::XdpNative),
            XdpMode::Generic => Some(Hook::XdpGeneric),
        }
    }
}

/// Name of a link's pin. By index: names change hands.
pub fn pin_name(ifindex: u32, hook: Hook) -> String {
    format!("{ifindex}-{}", hook.name())
}
