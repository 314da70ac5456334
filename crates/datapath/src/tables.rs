//! The seam to the kernel's maps: every table by name, and the few operations that the rest of the agent needs of them.
//!
//! [`Tables`] moves bytes; [`Typed`] gives them their types. The real implementation is [`super::Kernel`], the one for tests
//! [`super::Memory`]. Decides nothing.

use super::plain::{Plain, bytes_of, bytes_of_mut, read, zeroed};
use splitter_common::abi::*;
use std::{fmt, io, marker::PhantomData};
use thiserror::Error;

/// How a map is organised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// Indexed from 0, always full: nothing can be deleted, only overwritten.
    Array,
    /// The same, and the agent maps its memory (`BPF_F_MMAPABLE`, Linux 5.5).
    MappedArray,
    HashMap,
    LpmTrie,
    /// Forgets what was not used lately when it is full.
    LruHashMap,
    PerCpuArray,
    PerCpuHashMap,
}

macro_rules! tables {
    ($($variant:ident $name:ident: $kind:ident<$key:ty => $value:ty>, $entries:expr, $role:ident $layout:literal;)*) => {
        /// Every map of the kernel object that the agent looks into: see `splitter_common::abi`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Table { $($variant,)* }

        impl Table {
            pub const ALL: &'static [Table] = &[$(Table::$variant,)*];
            /// Name in the object and of the pin.
            pub const fn name(self) -> &'static str {
                match self { $(Table::$variant => stringify!($name),)* }
            }
            pub const fn kind(self) -> MapKind {
                match self { $(Table::$variant => MapKind::$kind,)* }
            }
            /// Bytes of a key.
            pub const fn key_size(self) -> usize {
                match self { $(Table::$variant => size_of::<$key>(),)* }
            }
            /// Bytes of a value, on one CPU for per-CPU tables.
            pub const fn entry_size(self) -> usize {
                match self { $(Table::$variant => size_of::<$value>(),)* }
            }
        }
    };
}
splitter_common::shared_tables!(tables);

impl Table {
    /// Indexed from 0, always full: nothing can be deleted, only overwritten.
    pub const fn is_array(self) -> bool {
        matches!(self.kind(), MapKind::Array | MapKind::MappedArray | MapKind::PerCpuArray)
    }
    /// One value a CPU.
    pub const fn is_per_cpu(self) -> bool {
        matches!(self.kind(), MapKind::PerCpuArray | MapKind::PerCpuHashMap)
    }
    /// Those of flows: one for each IP version, and swept.
    pub fn of_flows() -> impl Iterator<Item = Table> {
        Self::ALL.iter().copied().filter(|table| matches!(table.kind(), MapKind::LruHashMap) && table.name().ends_with(['4', '6']))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A map operation that the kernel refused.
#[derive(Debug, Error)]
pub enum TableError {
    #[error(
        "the map {table} is full ({limit} entries); its size is fixed when the maps are made: run `splitter detach` and start the agent again{hint}"
    )]
    Full { table: Table, limit: u32, hint: &'static str },
    // Not `source`: see `DatapathError::Pins`.
    #[error("cannot {action} the map {table}: {cause}")]
    Refused { table: Table, action: &'static str, cause: io::Error },
}

/// Where a scan stands; start with the default.
#[derive(Clone, Debug, Default)]
pub struct Cursor {
    pub(super) started: bool,
    pub(super) token: Vec<u8>,
}

/// Operations on maps; keys and values are concatenated bytes. Batches are not atomic: an error may leave a prefix done.
pub trait Tables {
    /// Inserts or overwrites.
    fn put(&mut self, table: Table, keys: &[u8], values: &[u8]) -> Result<(), TableError>;
    /// Overwrites one entry if it exists; `false` if not.
    fn replace(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<bool, TableError>;
    /// Removes; keys that are not there do not matter. Not for arrays.
    fn delete(&mut self, table: Table, keys: &[u8]) -> Result<(), TableError>;
    /// Reads one entry into `value`; `false` if it is not there.
    fn get(&self, table: Table, key: &[u8], value: &mut [u8]) -> Result<bool, TableError>;
    /// Reads about `limit` entries into the vectors (cleared first); `false` when the table's end was reached. Entries that come and go
    /// meanwhile may be missed or seen twice.
    fn scan(&self, table: Table, cursor: &mut Cursor, limit: usize, keys: &mut Vec<u8>, values: &mut Vec<u8>) -> Result<bool, TableError>;
    /// Reads entries of an array whose indexes follow each other from `first` on, as many as fit into `values`; all must exist.
    fn range(&self, table: Table, first: u32, values: &mut [u8]) -> Result<(), TableError>;
    /// Whether trials of the versions from `first` on were counted, or their counters written, since this was asked last. Who was told so reads
    /// the counters now, and once more the next time: what the kernel counts may be seen a moment after its mark.
    /// Who cannot tell says so of all.
    fn take_marks(&self, _first: u32, marked: &mut [bool]) {
        marked.fill(true);
    }
    /// Most entries.
    fn limit(&self, table: Table) -> u32;
    /// Possible CPUs: how many values an entry of a per-CPU table has.
    fn cpus(&self) -> usize;
    /// Bytes of kernel memory; 0 when not known.
    fn memory(&self, table: Table) -> u64;

    /// Bytes of a value as `get` and `put` see it: of all CPUs, each rounded up to 8, for per-CPU tables.
    fn value_size(&self, table: Table) -> usize {
        let size = table.entry_size();
        if table.is_per_cpu() { size.next_multiple_of(8) * self.cpus() } else { size }
    }
}

/// Entries that one scan step reads.
pub const SCAN: usize = 1024;

/// A table with the types of its entries. Not for per-CPU tables.
pub struct Typed<K, V>(pub Table, PhantomData<(K, V)>);

impl<K, V> Clone for Typed<K, V> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<K, V> Copy for Typed<K, V> {}

impl<K: Plain, V: Plain> Typed<K, V> {
    const fn new(table: Table) -> Self {
        assert!(table.key_size() == size_of::<K>() && table.entry_size() == size_of::<V>() && !table.is_per_cpu());
        Self(table, PhantomData)
    }

    /// As [`Tables::put`], in portions.
    pub fn put(self, tables: &mut impl Tables, entries: &[(K, V)]) -> Result<(), TableError> {
        for part in entries.chunks(4 * SCAN) {
            let (keys, values): (Vec<K>, Vec<V>) = part.iter().copied().unzip();
            tables.put(self.0, bytes_of(&keys), bytes_of(&values))?;
        }
        Ok(())
    }

    pub fn put_one(self, tables: &mut impl Tables, key: K, value: V) -> Result<(), TableError> {
        tables.put(self.0, bytes_of(&[key]), bytes_of(&[value]))
    }

    pub fn replace(self, tables: &mut impl Tables, key: K, value: V) -> Result<bool, TableError> {
        tables.replace(self.0, bytes_of(&[key]), bytes_of(&[value]))
    }

    pub fn delete(self, tables: &mut impl Tables, keys: &[K]) -> Result<(), TableError> {
        if keys.is_empty() { Ok(()) } else { tables.delete(self.0, bytes_of(keys)) }
    }

    pub fn get(self, tables: &impl Tables, key: K) -> Result<Option<V>, TableError> {
        let mut value = [zeroed::<V>()];
        Ok(tables.get(self.0, bytes_of(&[key]), bytes_of_mut(&mut value))?.then_some(value[0]))
    }

    /// One scan step; `false` when the end was reached.
    pub fn scan(self, tables: &impl Tables, cursor: &mut Cursor, mut each: impl FnMut(K, V)) -> Result<bool, TableError> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let more = tables.scan(self.0, cursor, SCAN, &mut keys, &mut values)?;
        for (key, value) in keys.chunks_exact(size_of::<K>()).zip(values.chunks_exact(size_of::<V>())) {
            each(read(key), read(value));
        }
        Ok(more)
    }

    /// Every entry.
    pub fn each(self, tables: &impl Tables, mut each: impl FnMut(K, V)) -> Result<(), TableError> {
        let mut cursor = Cursor::default();
        while self.scan(tables, &mut cursor, &mut each)? {}
        Ok(())
    }
}

pub const CONFIG: Typed<u32, Config> = Typed::new(Table::Config);
pub const FRONTENDS: Typed<FrontendKey, u32> = Typed::new(Table::Frontends);
pub const SERVICES: Typed<u32, Service> = Typed::new(Table::Services);
pub const MAGLEV: Typed<MaglevKey, MaglevChunk> = Typed::new(Table::Maglev);
pub const RULES: Typed<RuleKey, u32> = Typed::new(Table::Rules);
pub const HTTP_RULES: Typed<u32, HttpRules> = Typed::new(Table::HttpRules);
pub const BACKENDS: Typed<u32, Backend> = Typed::new(Table::Backends);
pub const IDS: Typed<[u8; 16], Identity> = Typed::new(Table::Ids);
pub const IFACES: Typed<u32, Iface> = Typed::new(Table::Ifaces);
pub const VIPS: Typed<Addr, u32> = Typed::new(Table::Vips);
pub const OWNED: Typed<Addr, u32> = Typed::new(Table::Owned);
pub const NEXTHOPS: Typed<u32, NextHop> = Typed::new(Table::NextHops);
pub const NEXTHOP_OWNERS: Typed<u32, NextHop> = Typed::new(Table::NextHopOwners);
pub const SUSPECTS: Typed<u32, u32> = Typed::new(Table::Suspects);
pub const LAPSED: Typed<u32, Lapsed> = Typed::new(Table::Lapsed);
pub const SUSPECTED: Typed<u32, Suspected> = Typed::new(Table::Suspected);
pub const STASH_SETS: Typed<u32, StashSet> = Typed::new(Table::StashSets);
pub const HEAD_LOSSES: Typed<LossKey, u64> = Typed::new(Table::HeadLosses);
pub const TRACE: Typed<u32, Trace> = Typed::new(Table::Trace);

/// The flow tables of one family.
pub trait FlowTables: Family {
    const TCP: Typed<FlowKey<Self>, Flow<Self>>;
    const UDP: Typed<FlowKey<Self>, Flow<Self>>;
    const HALF: Typed<FlowKey<Self>, HalfOpen<Self>>;
    const CLOSING: Typed<FlowKey<Self>, Flow<Self>>;
    const SNAT: Typed<FlowKey<Self>, Snat<Self>>;
    const CLAIMS: Typed<FlowKey<Self>, Snat<Self>>;
    const FRAGMENTS: Table;
    const SPLICED: Typed<FlowKey<Self>, Spliced<Self>>;
    const LEGS: Typed<FlowKey<Self>, Leg<Self>>;
    /// The ABI's form of an address.
    fn mapped(words: &Self::Words) -> Addr;
    /// The other way round.
    fn words(addr: &Addr) -> Self::Words;
}

impl FlowTables for V4 {
    const TCP: Typed<FlowKey<V4>, Flow<V4>> = Typed::new(Table::Tcp4);
    const UDP: Typed<FlowKey<V4>, Flow<V4>> = Typed::new(Table::Udp4);
    const HALF: Typed<FlowKey<V4>, HalfOpen<V4>> = Typed::new(Table::Half4);
    const CLOSING: Typed<FlowKey<V4>, Flow<V4>> = Typed::new(Table::Closing4);
    const SNAT: Typed<FlowKey<V4>, Snat<V4>> = Typed::new(Table::Snat4);
    const CLAIMS: Typed<FlowKey<V4>, Snat<V4>> = Typed::new(Table::Claims4);
    const FRAGMENTS: Table = Table::Fragments4;
    const SPLICED: Typed<FlowKey<V4>, Spliced<V4>> = Typed::new(Table::Spliced4);
    const LEGS: Typed<FlowKey<V4>, Leg<V4>> = Typed::new(Table::Legs4);
    fn mapped(words: &[u32; 1]) -> Addr {
        mapped(words[0].to_ne_bytes())
    }
    fn words(addr: &Addr) -> [u32; 1] {
        [read(&addr[12..])]
    }
}

impl FlowTables for V6 {
    const TCP: Typed<FlowKey<V6>, Flow<V6>> = Typed::new(Table::Tcp6);
    const UDP: Typed<FlowKey<V6>, Flow<V6>> = Typed::new(Table::Udp6);
    const HALF: Typed<FlowKey<V6>, HalfOpen<V6>> = Typed::new(Table::Half6);
    const CLOSING: Typed<FlowKey<V6>, Flow<V6>> = Typed::new(Table::Closing6);
    const SNAT: Typed<FlowKey<V6>, Snat<V6>> = Typed::new(Table::Snat6);
    const CLAIMS: Typed<FlowKey<V6>, Snat<V6>> = Typed::new(Table::Claims6);
    const FRAGMENTS: Table = Table::Fragments6;
    const SPLICED: Typed<FlowKey<V6>, Spliced<V6>> = Typed::new(Table::Spliced6);
    const LEGS: Typed<FlowKey<V6>, Leg<V6>> = Typed::new(Table::Legs6);
    fn mapped(words: &[u32; 4]) -> Addr {
        let mut addr = [0; 16];
        for (bytes, word) in addr.chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        addr
    }
    fn words(addr: &Addr) -> [u32; 4] {
        read(addr)
    }
}

/// The values of one entry of a per-CPU table, one a CPU; zeros when it is not there.
pub fn per_cpu<K: Plain, V: Plain>(tables: &impl Tables, table: Table, key: K) -> Result<Vec<V>, TableError> {
    debug_assert!(table.is_per_cpu() && table.entry_size() == size_of::<V>());
    let mut bytes = vec![0u8; tables.value_size(table)];
    tables.get(table, bytes_of(&[key]), &mut bytes)?;
    Ok(bytes.chunks_exact(size_of::<V>().next_multiple_of(8)).map(read).collect())
}
