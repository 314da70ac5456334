//! The kernel object's map definitions, read from the file: what the loader needs to know before it loads. ELF of 64 bits, little-endian.

/// Section of the definitions.
const SECTION: &[u8] = b"maps";
/// Bytes of one definition: type, size of a key, of a value, entries, flags, id, pinning; 32 bits each.
const DEFINITION: usize = 28;
const ENTRIES: usize = 12;
const PINNING: usize = 24;
const SYMTAB: u32 = 2;

/// One map as the object defines it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    pub name: String,
    /// `enum bpf_map_type`.
    pub kind: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub entries: u32,
    pub flags: u32,
    /// Where it stands in the file.
    at: usize,
}

/// Types that the object uses, by their names in linux/bpf.h.
const KINDS: [(u32, &str); 7] =
    [(1, "HASH"), (2, "ARRAY"), (3, "PROG_ARRAY"), (5, "PERCPU_HASH"), (6, "PERCPU_ARRAY"), (9, "LRU_HASH"), (11, "LPM_TRIE")];

impl Definition {
    pub fn kind_name(&self) -> String {
        let known = KINDS.iter().find(|(kind, _)| *kind == self.kind);
        known.map_or_else(|| format!("type {}", self.kind), |(_, name)| (*name).to_owned())
    }

    /// Entries that a trial makes: the programs are verified alike whatever the sizes, so memory need not be taken.
    fn small(&self) -> u32 {
        const HASHES: [u32; 4] = [1, 5, 9, 11];
        let bytes = u64::from(self.value_size) * u64::from(self.entries);
        match self.kind {
            kind if HASHES.contains(&kind) => self.entries.min(1_000),
            6 => self.entries.min(64),
            2 if bytes > 1 << 20 => self.entries.min(64),
            _ => self.entries,
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?)).ok()
}

/// Up to the next zero.
fn text_at(bytes: &[u8], at: usize) -> Option<&[u8]> {
    bytes.get(at..)?.split(|byte| *byte == 0).next()
}

struct Section {
    name: usize,
    kind: u32,
    offset: usize,
    size: usize,
    link: u32,
}

fn sections(object: &[u8]) -> Option<Vec<Section>> {
    let (table, size, count) = (u64_at(object, 0x28)?, u16_at(object, 0x3a)?, u16_at(object, 0x3c)?);
    let one = |index: usize| {
        let at = table.checked_add(index * usize::from(size))?;
        Some(Section {
            name: u32_at(object, at)? as usize,
            kind: u32_at(object, at + 4)?,
            offset: u64_at(object, at + 0x18)?,
            size: u64_at(object, at + 0x20)?,
            link: u32_at(object, at + 0x28)?,
        })
    };
    (0..usize::from(count)).map(one).collect()
}

/// The maps that the object defines; none when the bytes are no such object.
pub fn definitions(object: &[u8]) -> Vec<Definition> {
    read(object).unwrap_or_default()
}

fn read(object: &[u8]) -> Option<Vec<Definition>> {
    const SYMBOL: usize = 24;
    let sections = sections(object)?;
    let names = sections.get(usize::from(u16_at(object, 0x3e)?))?.offset;
    let index = sections.iter().position(|section| text_at(object, names + section.name) == Some(SECTION))?;
    let maps = sections.get(index)?;
    let symbols = sections.iter().find(|section| section.kind == SYMTAB)?;
    let strings = sections.get(symbols.link as usize)?.offset;
    let mut found = Vec::new();
    for at in (symbols.offset..symbols.offset.checked_add(symbols.size)?).step_by(SYMBOL) {
        let (value, size) = (u64_at(object, at + 8)?, u64_at(object, at + 16)?);
        if usize::from(u16_at(object, at + 6)?) != index || size != DEFINITION || value.checked_add(DEFINITION)? > maps.size {
            continue;
        }
        let at = (maps.offset.checked_add(value)?, strings + u32_at(object, at)? as usize);
        let field = |offset| u32_at(object, at.0 + offset);
        found.push(Definition {
            name: String::from_utf8_lossy(text_at(object, at.1)?).into_owned(),
            kind: field(0)?,
            key_size: field(4)?,
            value_size: field(8)?,
            entries: field(ENTRIES)?,
            flags: field(16)?,
            at: at.0,
        });
    }
    Some(found)
}

/// A copy whose maps are small and pinned nowhere: it leaves nothing behind, and touches nothing that is there.
pub fn for_trial(object: &[u8]) -> Vec<u8> {
    let mut copy = object.to_vec();
    for definition in definitions(object) {
        for (offset, value) in [(ENTRIES, definition.small()), (PINNING, 0)] {
            let at = definition.at + offset;
            if let Some(field) = copy.get_mut(at..at + 4) {
                field.copy_from_slice(&value.to_le_bytes());
            }
        }
    }
    copy
}

#[cfg(test)]
mod tests {
    use super::{super::tables::Table, *};
    use splitter_common::abi::{CALLS, TC_CALL_SLOTS, TC_CALLS, XDP_CALL_SLOTS, XDP_CALLS};

    #[test]
    fn every_table_is_defined_with_its_sizes_and_pinned_by_name() {
        let object = crate::objects::SPLITTER;
        let found = definitions(object);
        for table in Table::ALL {
            let definition = found.iter().find(|definition| definition.name == table.name()).unwrap_or_else(|| panic!("no {table}"));
            assert_eq!((definition.key_size as usize, definition.value_size as usize), (table.key_size(), table.entry_size()), "{table}");
            assert!(KINDS.iter().any(|(kind, _)| *kind == definition.kind), "{table} is of a type without a name: {definition:?}");
            assert_eq!(u32_at(object, definition.at + PINNING), Some(1), "{table}");
        }
    }

    /// Programs that are called are in the object, and those in the object are called or attached.
    #[test]
    fn every_program_has_its_slot() {
        let object = crate::objects::SPLITTER;
        let found = definitions(object);
        for (map, slots) in [(TC_CALLS, TC_CALL_SLOTS), (XDP_CALLS, XDP_CALL_SLOTS)] {
            assert!(found.iter().any(|definition| definition.name == map && definition.entries == slots), "{map}");
        }
        let names: Vec<&str> = object.split(|byte| *byte == 0).filter_map(|bytes| std::str::from_utf8(bytes).ok()).collect();
        for call in CALLS {
            assert!(names.contains(&call.program), "{} is not in the object", call.program);
        }
        let of_one_family = |name: &&&str| {
            let parts = ["http_", "out_", "net_", "xdp_", "splitter_"];
            name.ends_with(['4', '6']) && parts.iter().any(|part| name.starts_with(part)) && !name.contains(':')
        };
        for name in names.iter().filter(of_one_family) {
            assert!(CALLS.iter().any(|call| call.program == *name), "{name} is in no slot");
        }
    }

    #[test]
    fn the_copy_for_a_trial_differs_in_entries_and_pins_only() {
        let object = crate::objects::SPLITTER;
        let copy = for_trial(object);
        let (before, after) = (definitions(object), definitions(&copy));
        assert_eq!(before.len(), after.len());
        for (before, after) in before.iter().zip(&after) {
            assert_eq!(Definition { entries: after.entries, ..before.clone() }, *after);
            assert_eq!(u32_at(&copy, after.at + PINNING), Some(0), "{}", after.name);
            assert!(after.entries <= before.entries && after.entries > 0, "{}", after.name);
        }
        let total: u64 = after.iter().map(|map| u64::from(map.entries) * u64::from(map.key_size + map.value_size)).sum();
        assert!(total < 16 << 20, "{total} bytes");
    }

    #[test]
    fn what_only_debuggers_read_is_left_out() {
        let object = crate::objects::SPLITTER;
        let sections = sections(object).unwrap();
        let names = sections[usize::from(u16_at(object, 0x3e).unwrap())].offset;
        let size = |wanted: &dyn Fn(&[u8]) -> bool| -> usize {
            sections.iter().filter(|section| wanted(text_at(object, names + section.name).unwrap())).map(|section| section.size).sum()
        };
        assert!(
            size(&|name| name == b".BTF") > 100_000 && size(&|name| name == b".BTF.ext") > 100_000,
            "types and lines for the verifier's log"
        );
        assert_eq!(size(&|name| name.starts_with(b".debug_") || name.starts_with(b".rel.debug_")), 0);
    }

    #[test]
    fn other_bytes_define_nothing() {
        assert_eq!(definitions(b""), []);
        assert_eq!(definitions(&[0xff; 128]), []);
        assert_eq!(for_trial(b"no object"), b"no object");
    }
}
