//! Layouts of everything that lives in BPF maps.
//!
//! All types are `repr(C)`, made of integers and byte arrays, with explicit padding. Fields that come off the wire keep network
//! byte order and say so. Any change of a size, an offset or a meaning raises the layout of each map that has it
//! ([`Layout`]); `no_layout_changes_in_silence` and `layout_is_golden` refuse a silent one.

mod calls;
mod control;
mod flow;
mod http;
mod layout;
mod reason;
mod splice;
mod stats;
mod suspect;
mod tables;
mod trace;
pub mod trial;

pub use calls::*;
pub use control::*;
pub use flow::*;
pub use http::*;
pub use layout::*;
pub use reason::*;
pub use splice::*;
pub use stats::*;
pub use suspect::*;
pub use tables::*;
pub use trace::*;

/// An address in the one form that keys and contracts use: 16 bytes, network order, IPv4 as `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2).
pub type Addr = [u8; 16];

/// The IPv4-mapped form of an address.
pub const fn mapped(v4: [u8; 4]) -> Addr {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3]]
}

/// IP protocol numbers that services use.
pub const TCP: u8 = 6;
/// See [`TCP`].
pub const UDP: u8 = 17;

/// Marks the ABI types as plain data for aya's typed maps.
macro_rules! pod {
    ($($t:ty),* $(,)?) => {
        $(
            // SAFETY: repr(C), integers and byte arrays only, no implicit padding (checked by `layout_is_golden`).
            #[cfg(feature = "user")]
            unsafe impl aya::Pod for $t {}
        )*
    };
}
pub(crate) use pod;

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{offset_of, size_of};

    /// Sizes and offsets as they are now: whoever changes this test raises the layouts of the maps that have the type, in `tables`.
    #[test]
    fn layout_is_golden() {
        let sizes = [
            size_of::<FrontendKey>(),
            size_of::<Service>(),
            size_of::<VersionSlot>(),
            size_of::<MaglevKey>(),
            size_of::<MaglevChunk>(),
            size_of::<RuleKey>(),
            size_of::<Backend>(),
            size_of::<Identity>(),
            size_of::<Iface>(),
            size_of::<NextHop>(),
            size_of::<Config>(),
            size_of::<FlowKey<V4>>(),
            size_of::<FlowKey<V6>>(),
            size_of::<Flow<V4>>(),
            size_of::<Flow<V6>>(),
            size_of::<HalfOpen<V4>>(),
            size_of::<HalfOpen<V6>>(),
            size_of::<Snat<V4>>(),
            size_of::<Snat<V6>>(),
            size_of::<FragmentKey<V4>>(),
            size_of::<FragmentKey<V6>>(),
            size_of::<VersionCounters>(),
            size_of::<HistogramKey>(),
            size_of::<HistogramOctave>(),
            size_of::<HttpRules>(),
            size_of::<Spliced<V4>>(),
            size_of::<Spliced<V6>>(),
            size_of::<Leg<V4>>(),
            size_of::<Leg<V6>>(),
            size_of::<Stash>(),
            size_of::<Trace>(),
            size_of::<TraceEvent>(),
            size_of::<TraceCpu>(),
            size_of::<StashSet>(),
            size_of::<LossKey>(),
            size_of::<CookieSet>(),
            size_of::<Guesses>(),
        ];
        assert_eq!(
            sizes,
            [
                20, 272, 24, 12, 256, 24, 32, 8, 32, 24, 2112, 16, 40, 16, 28, 32, 48, 8, 20, 16, 40, 536, 8, 128, 5152, 100, 124, 96, 120,
                18632, 64, 184, 208, 128, 8, 64, 16
            ]
        );
        assert_eq!(offset_of!(Service, versions), 16);
        assert_eq!(offset_of!(Backend, state), 18);
        assert_eq!(offset_of!(Backend, version), 20);
        assert_eq!(offset_of!(Flow<V4>, owner), 8);
        assert_eq!(offset_of!(Flow<V6>, owner), 20);
        assert_eq!(offset_of!(HalfOpen<V4>, stamp), 24);
        assert_eq!(offset_of!(HalfOpen<V6>, stamp), 40);
        assert_eq!(offset_of!(Config, abi_version), 0);
        // Agents of other layouts read these too: they never move.
        assert_eq!(offset_of!(Config, secret), 16);
        assert_eq!(offset_of!(Config, cookies), 32);
        assert_eq!(offset_of!(TraceEvent, client), 32);
        assert_eq!(offset_of!(TraceEvent, text), 96);
    }

    #[test]
    fn reasons_have_unique_stable_names() {
        let mut names: std::vec::Vec<_> = Reason::ALL.iter().map(|r| r.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Reason::ALL.len());
        for (i, r) in Reason::ALL.iter().enumerate() {
            assert_eq!(*r as usize, i);
        }
    }
}
