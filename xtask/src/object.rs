//! Reads the built kernel object (ELF64, little-endian) and refuses what must not be in it: panic paths, calls of byte-wise memory functions, chains of
//! calls that take too much stack, and helpers that the oldest kernel lacks.

mod helpers;
mod stack;

use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;

const EM_BPF: u16 = 247;
const SHT_PROGBITS: u32 = 1;
const SHT_SYMTAB: u32 = 2;
const SHT_REL: u32 = 9;
const SHF_EXECINSTR: u64 = 4;
const STT_SECTION: u8 = 3;
const STT_FUNC: u8 = 2;
/// `call` of a function of the object.
const CALL: (u8, u8) = (0x85, 1);
/// `call` of a helper of the kernel, by number.
const HELPER: (u8, u8) = (0x85, 0);
const MEMORY: [&str; 5] = ["memcpy", "memmove", "memset", "memcmp", "bcmp"];

/// Whether these bytes are a BPF object.
pub fn is_bpf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF\x02\x01") && u16_at(bytes, 18).is_ok_and(|machine| machine == EM_BPF)
}

/// What one object holds.
#[derive(Debug, Default)]
pub struct Object {
    /// Programs (functions outside `.text`), and their instructions.
    pub programs: Vec<(String, usize)>,
    symbols: BTreeSet<String>,
    called: BTreeSet<String>,
    helpers: BTreeSet<u32>,
    functions: Vec<stack::Function>,
}

impl Object {
    /// Every reason to refuse it.
    pub fn complaints(&self) -> Vec<String> {
        let panics = self.symbols.iter().filter(|name| name.contains("panicking") || name.contains("panic_fmt"));
        let memory = self.called.iter().filter(|name| MEMORY.contains(&name.as_str()));
        panics
            .map(|name| format!("a panic path survived: {name} (mask the index, or use get)"))
            .chain(
                memory
                    .map(|name| format!("{name} is called: it works byte by byte; copy in fixed sizes of at most what the linker expands")),
            )
            .chain(self.helpers.iter().filter_map(|number| helpers::complaint(*number)))
            .chain(self.programs.iter().filter_map(|(name, _)| {
                let chain = stack::longest(&self.functions, name)?;
                let why = "move what it holds to the scratch memory, or cut the program by a tail call";
                (chain.bytes > stack::LIMIT).then(|| format!("{chain} (at most {}; {why})", stack::LIMIT))
            }))
            .collect()
    }

    /// Bytes of stack of the longest chain of calls under a program, by frames of 32 bytes.
    pub fn stack(&self, program: &str) -> Option<u32> {
        stack::longest(&self.functions, program).map(|chain| chain.bytes)
    }

    /// # Errors
    /// When the bytes are no BPF object, or cut.
    pub fn parse(bytes: &[u8]) -> Result<Object> {
        ensure!(is_bpf(bytes), "not a BPF object");
        let sections = sections(bytes)?;
        let table = sections.iter().find(|section| section.kind == SHT_SYMTAB).context("no symbol table")?;
        let strings = sections.get(table.link).context("no string table")?.data(bytes)?;
        let symbols = symbols(table.data(bytes)?, strings)?;
        let mut object = Object { symbols: symbols.iter().map(|symbol| symbol.name.clone()).collect(), ..Object::default() };
        object.functions = stack::functions(bytes, &sections, &symbols)?;
        for (index, section) in sections.iter().enumerate().filter(|(_, section)| section.is_code()) {
            let code = section.data(bytes)?;
            if section.name != ".text" {
                let entries = symbols.iter().filter(|symbol| symbol.kind == STT_FUNC && symbol.section == index);
                object.programs.extend(entries.map(|symbol| (symbol.name.clone(), (symbol.size / 8) as usize)));
            }
            let relocations = Relocations::of(bytes, &sections, index)?;
            for (i, instruction) in code.chunks_exact(8).enumerate() {
                match (instruction[0], instruction[1] >> 4) {
                    CALL => object.called.extend(callee(instruction, i, index, &relocations, &symbols)?),
                    HELPER => object.helpers.extend([u32_at(instruction, 4)?]),
                    _ => {}
                }
            }
        }
        Ok(object)
    }
}

struct Section {
    name: String,
    kind: u32,
    flags: u64,
    offset: usize,
    size: usize,
    link: usize,
    info: usize,
}

impl Section {
    fn data<'a>(&self, bytes: &'a [u8]) -> Result<&'a [u8]> {
        bytes.get(self.offset..self.offset + self.size).with_context(|| format!("section {} is cut", self.name))
    }

    fn is_code(&self) -> bool {
        self.kind == SHT_PROGBITS && self.flags & SHF_EXECINSTR != 0
    }
}

struct Symbol {
    name: String,
    kind: u8,
    section: usize,
    value: u64,
    size: u64,
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    match bytes.get(at..at + N) {
        Some(field) => Ok(field.try_into()?),
        None => bail!("the object is cut at byte {at}"),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    field(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    field(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    field(bytes, at).map(u64::from_le_bytes)
}

fn text_at(strings: &[u8], at: usize) -> String {
    let text = strings.get(at..).unwrap_or_default();
    String::from_utf8_lossy(text.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

fn sections(bytes: &[u8]) -> Result<Vec<Section>> {
    let (table, count, names) = (u64_at(bytes, 40)? as usize, u16_at(bytes, 60)? as usize, u16_at(bytes, 62)? as usize);
    let raw = |i: usize| -> Result<(usize, Section)> {
        let at = table + i * 64;
        let section = Section {
            name: String::new(),
            kind: u32_at(bytes, at + 4)?,
            flags: u64_at(bytes, at + 8)?,
            offset: u64_at(bytes, at + 24)? as usize,
            size: u64_at(bytes, at + 32)? as usize,
            link: u32_at(bytes, at + 40)? as usize,
            info: u32_at(bytes, at + 44)? as usize,
        };
        Ok((u32_at(bytes, at)? as usize, section))
    };
    let strings = raw(names)?.1;
    let strings = strings.data(bytes)?;
    (0..count).map(|i| raw(i).map(|(name, section)| Section { name: text_at(strings, name), ..section })).collect()
}

fn symbols(table: &[u8], strings: &[u8]) -> Result<Vec<Symbol>> {
    let symbol = |at: usize| {
        Ok(Symbol {
            name: text_at(strings, u32_at(table, at)? as usize),
            kind: field::<1>(table, at + 4)?[0] & 15,
            section: u16_at(table, at + 6)? as usize,
            value: u64_at(table, at + 8)?,
            size: u64_at(table, at + 16)?,
        })
    };
    (0..table.len() / 24).map(|i| symbol(i * 24)).collect()
}

/// Relocations of a code section: byte offset of the instruction, and symbol.
struct Relocations(Vec<(u64, usize)>);

impl Relocations {
    fn of(bytes: &[u8], sections: &[Section], section: usize) -> Result<Self> {
        let Some(table) = sections.iter().find(|other| other.kind == SHT_REL && other.info == section) else { return Ok(Self(Vec::new())) };
        let entry = |at: &[u8]| Ok((u64_at(at, 0)?, (u64_at(at, 8)? >> 32) as usize));
        table.data(bytes)?.chunks_exact(16).map(entry).collect::<Result<_>>().map(Self)
    }

    /// Section and byte offset that the instruction at `at` names: of a symbol, or `distance` from the beginning of a section. `None`: it has no
    /// relocation.
    fn target(&self, at: usize, symbols: &[Symbol], distance: i64) -> Result<Option<(usize, i64)>> {
        let Some((_, index)) = self.0.iter().find(|(offset, _)| *offset == at as u64) else { return Ok(None) };
        let symbol = symbols.get(*index).context("a relocation names no symbol")?;
        Ok(Some((symbol.section, if symbol.kind == STT_SECTION { distance } else { symbol.value as i64 })))
    }
}

/// The function that call instruction `i` of a section calls. A relocation names it, or its section and a distance; without one it is in the
/// same section.
fn callee(instruction: &[u8], i: usize, section: usize, relocations: &Relocations, symbols: &[Symbol]) -> Result<Option<String>> {
    let distance = i64::from(u32_at(instruction, 4)? as i32);
    let here = (section, (i as i64 + 1 + distance) * 8);
    let target = relocations.target(i * 8, symbols, (distance + 1) * 8)?.unwrap_or(here);
    let it = |symbol: &&Symbol| symbol.kind == STT_FUNC && (symbol.section, symbol.value as i64) == target;
    Ok(symbols.iter().find(it).map(|symbol| symbol.name.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_name_panics_and_called_memory_functions_only() {
        let set = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        let good = Object { symbols: set(&["splitter_tc", "memcpy"]), called: set(&["lookup"]), ..Object::default() };
        assert_eq!(good.complaints(), Vec::<String>::new());
        let bad = Object { symbols: set(&["_ZN4core9panicking5panic17h0E"]), called: set(&["memset"]), ..Object::default() };
        assert_eq!(bad.complaints().len(), 2);
    }

    #[test]
    fn calls_are_resolved_with_and_without_relocations() {
        let symbol = |name: &str, kind, section, value| Symbol { name: name.into(), kind, section, value, size: 8 };
        let symbols =
            [symbol("", 0, 0, 0), symbol("", STT_SECTION, 2, 0), symbol("memcpy", STT_FUNC, 2, 16), symbol("near", STT_FUNC, 1, 8)];
        let call = |distance: i32| [&[0x85, 0x10, 0, 0][..], &distance.to_le_bytes()].concat();
        let name = |code: &[u8], relocations| callee(code, 3, 1, &Relocations(relocations), &symbols).unwrap();
        assert_eq!(name(&call(-3), vec![]).as_deref(), Some("near"));
        assert_eq!(name(&call(-1), vec![(24, 2)]).as_deref(), Some("memcpy"));
        assert_eq!(name(&call(1), vec![(24, 1)]).as_deref(), Some("memcpy"));
        assert_eq!(name(&call(7), vec![]), None);
    }

    #[test]
    fn host_objects_are_refused() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(!is_bpf(&own) && Object::parse(&own).is_err());
    }
}
