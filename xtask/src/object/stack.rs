//! How much stack the calls of a program take together, as the verifier counts it: 512 bytes for a program and all that it calls or hands to
//! a helper as a callback. Each frame is rounded up, to 32 bytes on Linux 6.1 (`check_max_stack_depth`; 16 where the JIT says so, since 6.9), and an
//! empty one counts as one unit.

use super::{Relocations, STT_FUNC, Section, Symbol, field, u32_at};
use anyhow::Result;
use std::collections::{HashMap, HashSet};

/// Most bytes of the longest chain of calls: 64 below the verifier's limit, so that the next change does not meet it.
pub const LIMIT: u32 = 448;
/// What a frame is rounded up to.
const UNIT: u32 = 32;
/// The frame pointer.
const FP: u8 = 10;

/// A function of the object.
#[derive(Debug, Default, PartialEq)]
pub struct Function {
    pub name: String,
    /// Bytes below the frame pointer that it touches.
    pub frame: u32,
    /// Functions that it calls or gives to a helper, by index.
    pub calls: Vec<usize>,
}

/// The longest chain of calls under a program.
#[derive(Debug, PartialEq)]
pub struct Chain {
    /// Bytes, each frame rounded up.
    pub bytes: u32,
    /// Names and frames, from the program down.
    pub frames: Vec<(String, u32)>,
}

/// Reads all functions of the code sections.
///
/// # Errors
/// When the object is cut.
pub fn functions(bytes: &[u8], sections: &[Section], symbols: &[Symbol]) -> Result<Vec<Function>> {
    let code = |symbol: &&Symbol| symbol.kind == STT_FUNC && sections.get(symbol.section).is_some_and(Section::is_code);
    let found: Vec<&Symbol> = symbols.iter().filter(code).collect();
    let places: HashMap<(usize, i64), usize> =
        found.iter().enumerate().map(|(index, symbol)| ((symbol.section, symbol.value as i64), index)).collect();
    let relocations: HashMap<usize, Relocations> = (0..sections.len())
        .filter(|index| sections[*index].is_code())
        .map(|index| Ok((index, Relocations::of(bytes, sections, index)?)))
        .collect::<Result<_>>()?;
    let read = |symbol: &&Symbol| {
        let code = sections[symbol.section].data(bytes)?;
        function(symbol, code, &relocations[&symbol.section], symbols, &places)
    };
    found.iter().map(read).collect()
}

fn function(
    symbol: &Symbol,
    code: &[u8],
    relocations: &Relocations,
    symbols: &[Symbol],
    places: &HashMap<(usize, i64), usize>,
) -> Result<Function> {
    let mut function = Function { name: symbol.name.clone(), ..Function::default() };
    let (mut at, end) = (symbol.value as usize, (symbol.value + symbol.size) as usize);
    // Registers that hold the frame pointer itself.
    let mut copies = HashSet::new();
    while at < end {
        let [opcode, registers, o0, o1, ..] = field::<8>(code, at)?;
        let (to, from) = (registers & 15, registers >> 4);
        let (offset, immediate) = (i32::from(i16::from_le_bytes([o0, o1])), u32_at(code, at + 4)? as i32);
        let store = matches!(opcode & 7, 2 | 3) && to == FP;
        let load = opcode & 7 == 1 && from == FP;
        if (store || load) && offset < 0 {
            function.frame = function.frame.max(offset.unsigned_abs());
        }
        match opcode {
            // r = fp, then r += distance: the address of a local variable.
            0xbf if from == FP => {
                copies.insert(to);
            }
            0x07 if immediate < 0 && copies.remove(&to) => function.frame = function.frame.max(immediate.unsigned_abs()),
            // A call of a function of the object.
            0x85 if from == 1 => {
                let here = (symbol.section, at as i64 + (i64::from(immediate) + 1) * 8);
                let target = relocations.target(at, symbols, (i64::from(immediate) + 1) * 8)?.unwrap_or(here);
                function.calls.extend(places.get(&target));
            }
            // A 64-bit constant: the address of a callback when its relocation names a function.
            0x18 => {
                let target = relocations.target(at, symbols, i64::from(immediate))?;
                function.calls.extend(target.and_then(|target| places.get(&target)));
                at += 8;
            }
            _ => {}
        }
        at += 8;
    }
    function.calls.sort_unstable();
    function.calls.dedup();
    Ok(function)
}

/// The longest chain under the function of this name; `None` when there is no such function. The object has no recursion: no verifier would
/// take it.
pub fn longest(functions: &[Function], name: &str) -> Option<Chain> {
    let index = functions.iter().position(|function| function.name == name)?;
    Some(below(functions, index))
}

fn below(functions: &[Function], index: usize) -> Chain {
    let function = &functions[index];
    let own = function.frame.max(1).next_multiple_of(UNIT);
    let deepest = function.calls.iter().map(|call| below(functions, *call)).max_by_key(|chain| chain.bytes);
    let mut frames = vec![(readable(&function.name), function.frame)];
    let mut bytes = own;
    if let Some(chain) = deepest {
        bytes += chain.bytes;
        frames.extend(chain.frames);
    }
    Chain { bytes, frames }
}

impl std::fmt::Display for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes of stack:", self.bytes)?;
        for (index, (name, frame)) in self.frames.iter().enumerate() {
            write!(f, "{}{name} [{frame}]", if index == 0 { " " } else { " > " })?;
        }
        Ok(())
    }
}

/// A mangled name without its generics and hashes.
fn readable(name: &str) -> String {
    let full = format!("{:#}", rustc_demangle::demangle(name));
    let mut depth = 0;
    let without: String = full
        .chars()
        .filter(|c| {
            let inside = depth > 0 || *c == '<';
            depth += i32::from(*c == '<') - i32::from(*c == '>');
            !inside
        })
        .collect();
    without.trim_end_matches("::").trim_start_matches("splitter_ebpf::").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn functions() -> Vec<Function> {
        let function = |name: &str, frame, calls: &[usize]| Function { name: name.into(), frame, calls: calls.into() };
        vec![function("program", 33, &[1, 2]), function("small", 0, &[3]), function("large", 40, &[]), function("leaf", 200, &[])]
    }

    #[test]
    fn the_longest_chain_counts_rounded_frames() {
        let chain = longest(&functions(), "program").unwrap();
        assert_eq!(chain.bytes, 64 + 32 + 224);
        assert_eq!(chain.to_string(), "320 bytes of stack: program [33] > small [0] > leaf [200]");
        assert_eq!(longest(&functions(), "absent"), None);
    }

    /// `program` puts something at fp - 8, takes the address of fp - 40, calls a neighbour and names another one as a callback.
    #[test]
    fn frames_and_callbacks_are_read_from_code() {
        let instruction = |opcode: u8, registers: u8, offset: i16, immediate: i32| {
            [&[opcode, registers][..], &offset.to_le_bytes(), &immediate.to_le_bytes()].concat()
        };
        let code = [
            instruction(0x7a, FP, -8, 0),
            instruction(0xbf, FP << 4 | 2, 0, 0),
            instruction(0x07, 2, 0, -40),
            instruction(0x18, 0x43, 0, 0),
            instruction(0, 0, 0, 0),
            instruction(0x85, 0x10, 0, 1),
            instruction(0x95, 0, 0, 0),
            instruction(0x95, 0, 0, 0),
            instruction(0x95, 0, 0, 0),
        ]
        .concat();
        let symbol = |name: &str, value, size| Symbol { name: name.into(), kind: STT_FUNC, section: 1, value, size };
        let symbols = [symbol("program", 0, 56), symbol("called", 56, 8), symbol("back", 64, 8)];
        let places = HashMap::from([((1, 0), 0), ((1, 56), 1), ((1, 64), 2)]);
        let relocations = Relocations(vec![(24, 2)]);
        let found = function(&symbols[0], &code, &relocations, &symbols, &places).unwrap();
        assert_eq!(found, Function { name: "program".into(), frame: 40, calls: vec![1, 2] });
    }

    #[test]
    fn names_are_readable() {
        let name = "_RINvNtNtCsbbtQezwDuxJ_13splitter_ebpf2lb6select6selectNtNtCscTmzoxvt6mi_8splitter4maps6KernelEBU_";
        assert_eq!(readable(name), "lb::select::select");
        assert_eq!(readable("splitter_tc6"), "splitter_tc6");
    }
}
