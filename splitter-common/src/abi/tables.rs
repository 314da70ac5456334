//! Every pinned map, described once: its name, its kind, its entries' types, and how many entries it has at least. The kernel's statics, the agent's
//! `Table`, and the test of the documentation's table are made of these lines.

/// Hands the maps that kernel and agent share to the macro `$then`, a line for each:
/// `Variant NAME: Kind<Key => Value>, entries, Role layout;`, with the types of [`crate::abi`], which must be in scope. `entries`: the smallest number that makes
/// sense; the agent sets some by what it is told, and by the policy. Role and layout: see [`crate::abi::Layout`]. Whoever changes a size, an offset or a meaning of
/// a map's key or value raises its layout by one; a test refuses a silent change.
#[macro_export]
macro_rules! shared_tables {
    ($then:ident) => {
        $then! {
            Config CONFIG: Array<u32 => Config>, 1, Filled 1;
            Filter FILTER: Array<u32 => FilterBits>, 1, Filled 1;
            Frontends FRONTENDS: HashMap<FrontendKey => u32>, 131_072, Filled 1;
            Services SERVICES: HashMap<u32 => Service>, 65_536, Filled 1;
            Maglev MAGLEV: HashMap<MaglevKey => MaglevChunk>, 2_097_152, Filled 1;
            Rules RULES: LpmTrie<RuleKey => u32>, 65_536, Filled 1;
            HttpRules HTTP_RULES: HashMap<u32 => HttpRules>, 65_536, Filled 1;
            Backends BACKENDS: Array<u32 => Backend>, 4_096, Filled 1;
            Ids IDS: HashMap<[u8; 16] => Identity>, 524_288, Kept 1;
            Ifaces IFACES: HashMap<u32 => Iface>, 4_096, Filled 1;
            // Addresses of frontends, with `vip_flag` bits.
            Vips VIPS: HashMap<Addr => u32>, 131_072, Filled 1;
            // Addresses of the node itself.
            Owned OWNED: HashMap<Addr => u32>, 16_384, Filled 1;
            NextHops NEXTHOPS: Array<u32 => NextHop>, $crate::abi::NEXTHOP_SLOTS, Kept 1;
            NextHopOwners NEXTHOP_OWNERS: HashMap<u32 => NextHop>, $crate::abi::NEXTHOP_SLOTS, Kept 1;
            // Backend id to the tick until which it gets no new flow while others can.
            Suspects SUSPECTS: LruHashMap<u32 => u32>, 4_096, Anew 1;
            // Version id to its suspects.
            Suspected SUSPECTED: LruHashMap<u32 => Suspected>, 4_096, Anew 1;
            Tcp4 TCP4: LruHashMap<FlowKey<V4> => Flow<V4>>, 1_024, Kept 1;
            Tcp6 TCP6: LruHashMap<FlowKey<V6> => Flow<V6>>, 1_024, Kept 1;
            Udp4 UDP4: LruHashMap<FlowKey<V4> => Flow<V4>>, 1_024, Kept 1;
            Udp6 UDP6: LruHashMap<FlowKey<V6> => Flow<V6>>, 1_024, Kept 1;
            Half4 HALF4: LruHashMap<FlowKey<V4> => HalfOpen<V4>>, 1_024, Kept 1;
            Half6 HALF6: LruHashMap<FlowKey<V6> => HalfOpen<V6>>, 1_024, Kept 1;
            Closing4 CLOSING4: LruHashMap<FlowKey<V4> => Flow<V4>>, 1_024, Kept 1;
            Closing6 CLOSING6: LruHashMap<FlowKey<V6> => Flow<V6>>, 1_024, Kept 1;
            Snat4 SNAT4: LruHashMap<FlowKey<V4> => Snat<V4>>, 1_024, Kept 1;
            Snat6 SNAT6: LruHashMap<FlowKey<V6> => Snat<V6>>, 1_024, Kept 1;
            // The same, of flows that nobody has answered yet: however many, they displace no other.
            Claims4 CLAIMS4: LruHashMap<FlowKey<V4> => Snat<V4>>, 1_024, Kept 1;
            Claims6 CLAIMS6: LruHashMap<FlowKey<V6> => Snat<V6>>, 1_024, Kept 1;
            Fragments4 FRAGMENTS4: LruHashMap<FragmentKey<V4> => u32>, 1_024, Kept 1;
            Fragments6 FRAGMENTS6: LruHashMap<FragmentKey<V6> => u32>, 1_024, Kept 1;
            Spliced4 SPLICED4: LruHashMap<FlowKey<V4> => Spliced<V4>>, 1_024, Kept 1;
            Spliced6 SPLICED6: LruHashMap<FlowKey<V6> => Spliced<V6>>, 1_024, Kept 1;
            Legs4 LEGS4: LruHashMap<FlowKey<V4> => Leg<V4>>, 1_024, Kept 1;
            Legs6 LEGS6: LruHashMap<FlowKey<V6> => Leg<V6>>, 1_024, Kept 1;
            Stashes STASHES: Array<u32 => Stash>, $crate::abi::STASH_SLOTS, Kept 1;
            // Who has which of them.
            StashSets STASH_SETS: Array<u32 => StashSet>, $crate::abi::STASH_SETS, Kept 1;
            // What clients suffered for want of one.
            HeadLosses HEAD_LOSSES: HashMap<LossKey => u64>, 65_536, Anew 1;
            // Cookies that have begun a connection: see `splice::seen`.
            Spent SPENT: Array<u32 => CookieSet>, $crate::abi::SPENT_SETS, Kept 1;
            // What clients said in their SYN: see `splice::seen`.
            Handshakes HANDSHAKES: Array<u32 => CookieSet>, $crate::abi::HANDSHAKE_SETS, Kept 1;
            // Wrong cookies: see `splice::guard`.
            Guesses GUESSES: Array<u32 => Guesses>, $crate::abi::GUESS_SLOTS, Anew 1;
            // Hash of a connection that the splice does not know to the tick at which it was first seen.
            Strays STRAYS: LruHashMap<u32 => u32>, 4_096, Anew 1;
            // Who looks at decisions, and at which.
            Trace TRACE: Array<u32 => Trace>, 1, Anew 1;
            Counters COUNTERS: PerCpuArray<u32 => VersionCounters>, 1_024, Anew 1;
            // Version id to 1 when trials of it were counted since the agent looked, which reads and clears this without a system call.
            Moved MOVED: MappedArray<u32 => u32>, 1_024, Anew 1;
            // Written by the agent alone.
            Lapsed LAPSED: HashMap<u32 => Lapsed>, 131_072, Anew 1;
            Histograms HISTOGRAMS: PerCpuHashMap<HistogramKey => HistogramOctave>, 262_144, Anew 1;
            Reasons REASONS: PerCpuArray<u32 => u64>, $crate::abi::REASON_SLOTS, Anew 1;
        }
    };
}

/// As `shared_tables!`: the maps that the agent makes and pins, and never looks into.
#[macro_export]
macro_rules! kernel_tables {
    ($then:ident) => {
        $then! {
            // Clients that the node has answered itself, until they have closed: however many, they displace nobody else.
            Answered4 ANSWERED4: LruHashMap<FlowKey<V4> => Spliced<V4>>, 8_192, Kept 1;
            Answered6 ANSWERED6: LruHashMap<FlowKey<V6> => Spliced<V6>>, 8_192, Kept 1;
            // See `splice::lock`.
            SpliceLocks SPLICE_LOCKS: Array<u32 => u64>, $crate::abi::SPLICE_LOCKS, Kept 1;
        }
    };
}

/// The value of `FILTER`.
pub type FilterBits = [u64; crate::filter::WORDS as usize];

#[cfg(test)]
mod tests {
    use crate::abi::*;
    use std::{collections::BTreeMap, fs, string::String, vec::Vec};

    struct Described {
        name: &'static str,
        kind: &'static str,
        key: usize,
        value: usize,
        entries: u32,
    }

    macro_rules! described {
        ($($variant:ident $name:ident: $kind:ident<$key:ty => $value:ty>, $entries:expr, $role:ident $layout:literal;)*) => {
            [$(Described {
                name: stringify!($name),
                kind: stringify!($kind),
                key: size_of::<$key>(),
                value: size_of::<$value>(),
                entries: $entries,
            },)*]
        };
    }

    fn all() -> Vec<Described> {
        shared_tables!(described).into_iter().chain(kernel_tables!(described)).collect()
    }

    /// Not pinned, or no map of entries: the kernel programs' own.
    const OTHERS: [&str; 11] = [
        "ERRORS",
        "TC_CALLS",
        "XDP_CALLS",
        "SCRATCH4",
        "SCRATCH6",
        "TRACE_RING",
        "TRACE_CPU",
        "TRACE_TOLD",
        "NOTES",
        "AYA_LOGS",
        "EMPTY_OCTAVE",
    ];

    /// Rows of the table of maps: cells without their bars.
    fn rows() -> Vec<Vec<String>> {
        let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/ARCHITECTURE.md")).expect("the documentation is there");
        let (_, section) = text.split_once("## Who owns which map").expect("the section is there");
        let lines = section.lines().skip_while(|line| !line.starts_with("| map |")).skip(2).take_while(|line| line.starts_with('|'));
        lines
            .map(|line| line.trim_matches('|').split(" | ").map(|cell| String::from(cell.trim().trim_end_matches('|').trim())).collect())
            .collect()
    }

    /// Numbers in the last parentheses of a cell: bytes.
    fn bytes(cell: &str) -> Vec<usize> {
        let inner = cell.rsplit_once('(').and_then(|(_, rest)| rest.split_once(')')).map_or("", |(inner, _)| inner);
        inner.split(", ").map(|number| number.replace(',', "").parse()).collect::<Result<_, _>>().unwrap_or_default()
    }

    fn names(cell: &str) -> Vec<&str> {
        cell.split('`').skip(1).step_by(2).collect()
    }

    #[test]
    fn the_documentation_tells_every_map_as_it_is() {
        let (rows, tables) = (rows(), all());
        let mut told: BTreeMap<&str, (&Vec<String>, usize)> = BTreeMap::new();
        for row in &rows {
            for (place, name) in names(&row[0]).into_iter().enumerate() {
                assert!(told.insert(name, (row, place)).is_none(), "{name} is told twice");
                assert!(OTHERS.contains(&name) || tables.iter().any(|table| table.name == name), "{name} is told, and is no map");
            }
        }
        for table in &tables {
            let Some((row, place)) = told.get(table.name) else { panic!("{} is not told in docs/ARCHITECTURE.md", table.name) };
            for (cell, size) in [(&row[1], table.key), (&row[2], table.value)] {
                // Both families in one row have both sizes.
                let told = bytes(cell);
                assert!(
                    told.is_empty() || told.get((*place).min(told.len() - 1)) == Some(&size),
                    "{}: {size} bytes, told: {cell}",
                    table.name
                );
            }
            let told = row[5].split([' ', ':']).next().unwrap_or_default().trim_end_matches(',').replace(',', "");
            let sized = ["Array", "HashMap", "LpmTrie", "PerCpuHashMap"].contains(&table.kind) && table.name != "BACKENDS";
            if sized || table.entries == 8_192 {
                assert_eq!(told.parse(), Ok(table.entries), "{}: entries told: {}", table.name, row[5]);
            }
        }
    }

    /// What the agent reads of values is their bytes.
    #[test]
    fn names_are_the_kernels() {
        let tables = all();
        // BPF_OBJ_NAME_LEN.
        assert!(tables.iter().all(|table| table.name.len() < 16 && table.entries > 0));
        assert_eq!(tables.len(), 50);
    }
}
