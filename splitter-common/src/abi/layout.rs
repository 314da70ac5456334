//! What each pinned map's bytes mean, by a number of its own, and what becomes of the map when an agent with another number takes over. Owns no map and no
//! type: the lines are those of [`super::tables`].

use super::*;

/// What becomes of a map when the pinned one has another layout than the agent that comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The agent fills it, from the policy and from what it sees of the node. All of them are made anew, since they name each other's entries.
    Filled,
    /// Begins empty: counts, and what the kernel programs find out again.
    Anew,
    /// Holds connections, or what their entries name by number: never made anew while traffic depends on it.
    Kept,
}

/// A pinned map as this program knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub name: &'static str,
    pub role: Role,
    /// Raised by one with every change of a size, an offset or a meaning of key or value.
    pub layout: u32,
    /// Bytes of a key, and of a value on one CPU.
    pub key_size: usize,
    pub value_size: usize,
    /// See [`crate::shared_tables`].
    pub entries: u32,
}

macro_rules! layouts {
    ($($variant:ident $name:ident: $kind:ident<$key:ty => $value:ty>, $entries:expr, $role:ident $layout:literal;)*) => {
        &[$(Layout {
            name: stringify!($name),
            role: Role::$role,
            layout: $layout,
            key_size: size_of::<$key>(),
            value_size: size_of::<$value>(),
            entries: $entries,
        },)*]
    };
}

/// Every pinned map that agent and kernel programs share.
const SHARED: &[Layout] = crate::shared_tables!(layouts);
/// Those that the agent never looks into.
const KERNEL: &[Layout] = crate::kernel_tables!(layouts);

/// Every pinned map; tables of programs are none of them: each load makes its own.
pub fn layouts() -> impl Iterator<Item = &'static Layout> + Clone {
    SHARED.iter().chain(KERNEL)
}

/// Maps that earlier versions had and this one has not. They may be removed; one that is in neither list was made by a newer agent.
pub const RETIRED: &[&str] = &[];

/// What [`Config::abi_version`] was when maps got layouts of their own: agents with a smaller one knew one number for all maps.
pub const FIRST_ABI_VERSION: u32 = 7;

/// One number for all layouts, for people and for agents that know no other: it grows with each of them.
pub const ABI_VERSION: u32 = FIRST_ABI_VERSION + raised(SHARED) + raised(KERNEL);

/// By how much the layouts were raised, in all.
const fn raised(layouts: &[Layout]) -> u32 {
    let (mut sum, mut i) = (0, 0);
    while i < layouts.len() {
        sum += layouts[i].layout - 1;
        i += 1;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        collections::{BTreeMap, BTreeSet},
        format, fs, println,
        string::String,
        vec::Vec,
    };

    /// A map's line of the golden file, but for the fields.
    macro_rules! written {
        ($($variant:ident $name:ident: $kind:ident<$key:ty => $value:ty>, $entries:expr, $role:ident $layout:literal;)*) => {
            [$((stringify!($name), stringify!($kind), stringify!($key), size_of::<$key>(), stringify!($value), size_of::<$value>()),)*]
        };
    }

    /// Definitions of this crate's structs, as they are written: fields in their order, by name and type.
    fn structs() -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        let folders = ["/src/abi", "/src/http"].map(|folder| format!("{}{folder}", env!("CARGO_MANIFEST_DIR")));
        let files = folders
            .iter()
            .flat_map(|folder| fs::read_dir(folder).expect("the sources are there"))
            .map(|file| file.expect("readable").path());
        for file in files.filter(|path| path.is_file()) {
            let text = fs::read_to_string(file).expect("a text");
            let lines = text.lines().map(str::trim).filter(|line| !line.starts_with("//") && !line.starts_with("#["));
            let text = format!("\n{}", lines.collect::<Vec<_>>().join("\n"));
            for piece in text.split("\npub struct ").skip(1) {
                let name: String = piece.chars().take_while(|c| c.is_alphanumeric()).collect();
                // Of a tuple in parentheses, else in braces.
                let tuple = piece.find('(').filter(|at| piece.find('{').is_none_or(|brace| *at < brace));
                let body = match tuple {
                    Some(at) => piece[at + 1..].split_once(");"),
                    None => piece.split_once('{').and_then(|(_, rest)| rest.split_once('}')),
                };
                let (body, _) = body.unwrap_or_else(|| panic!("{name} has no fields"));
                let fields: Vec<&str> = body.split(',').map(str::trim).filter(|field| !field.is_empty()).collect();
                found.insert(
                    name,
                    ["pub(crate) ", "pub(super) ", "pub "].iter().fold(fields.join(", "), |text, word| text.replace(word, "")),
                );
            }
        }
        found
    }

    /// Structs that a text names, and those that these name.
    fn named(structs: &BTreeMap<String, String>, text: &str, into: &mut BTreeSet<String>) {
        for word in text.split(|c: char| !c.is_alphanumeric() && c != '_') {
            if let Some(fields) = structs.get(word)
                && into.insert(word.into())
            {
                named(structs, fields, into);
            }
        }
    }

    /// The golden file as it has to be: a line for each map with its layout, then one for each struct that they have.
    fn present() -> Vec<String> {
        let rows = crate::shared_tables!(written).into_iter().chain(crate::kernel_tables!(written));
        let line = |((name, kind, key, key_size, value, value_size), layout): ((&str, _, &str, _, &str, _), &Layout)| {
            assert_eq!(name, layout.name);
            let (key, value) = (key.replace(char::is_whitespace, ""), value.replace(char::is_whitespace, ""));
            format!("{name} {}: {kind} {key} ({key_size}) {value} ({value_size})", layout.layout)
        };
        let mut lines: Vec<String> = rows.zip(layouts()).map(line).collect();
        let (structs, mut used) = (structs(), BTreeSet::new());
        lines.iter().for_each(|line| named(&structs, line, &mut used));
        lines.extend(used.iter().map(|name| format!("struct {name}: {}", structs[name])));
        lines
    }

    /// By map and layout all that its bytes depend on.
    fn by_map(lines: &[String]) -> BTreeMap<&str, String> {
        let split = || lines.iter().filter_map(|line| line.split_once(": "));
        let structs = split().filter_map(|(name, fields)| Some((name.strip_prefix("struct ")?.into(), fields.into()))).collect();
        let whole = |bytes: &str| {
            let mut uses = BTreeSet::new();
            named(&structs, bytes, &mut uses);
            uses.iter().fold(String::from(bytes), |text, name| format!("{text}; {name}: {}", structs[name]))
        };
        split().filter(|(name, _)| !name.starts_with("struct ")).map(|(name, bytes)| (name, whole(bytes))).collect()
    }

    /// Maps whose bytes differ from the golden ones while their number does not.
    fn silent(golden: &[String], present: &[String]) -> Vec<String> {
        let (golden, present) = (by_map(golden), by_map(present));
        let changed = present.into_iter().filter(|(map, bytes)| golden.get(map).is_some_and(|known| known != bytes));
        changed.map(|(map, _)| map.into()).collect()
    }

    #[test]
    fn no_layout_changes_in_silence() {
        let golden: Vec<String> = include_str!("layouts.golden").lines().map(String::from).collect();
        let present = present();
        if golden != present {
            present.iter().for_each(|line| println!("{line}"));
        }
        let changed = silent(&golden, &present);
        assert!(
            changed.is_empty(),
            "bytes of {changed:?} changed: raise their layouts in abi/tables.rs, then write the lines above to abi/layouts.golden"
        );
        assert!(golden == present, "abi/layouts.golden is to have the lines above: a map is new or gone, or its layout was raised");
    }

    #[test]
    fn a_field_that_moves_is_noticed_in_every_map_that_has_it() {
        let golden = present();
        assert_eq!(silent(&golden, &golden), Vec::<String>::new());
        let with = |from: &str, to: &str| golden.iter().map(|line| line.replace(from, to)).collect::<Vec<_>>();
        let swapped = with("struct Owner: u32", "struct Owner: u16");
        assert_ne!(swapped, golden);
        let changed = silent(&golden, &swapped);
        for map in ["TCP4 1", "HALF6 1", "LEGS6 1", "ANSWERED4 1"] {
            assert!(changed.iter().any(|name| name == map), "{map}: {changed:?}");
        }
        assert!(!changed.iter().any(|name| name == "SERVICES 1"), "{changed:?}");
        // What is raised is no silent change.
        assert_eq!(silent(&golden, &with("SERVICES 1: HashMap u32 (4)", "SERVICES 2: HashMap u32 (8)")), Vec::<String>::new());
    }

    #[test]
    fn structs_are_read_as_they_are_written() {
        let structs = structs();
        assert_eq!(structs["Owner"], "u32");
        assert_eq!(structs["FragmentKey"], "src: F::Words, dst: F::Words, id: u32, proto: u32");
        assert!(structs.contains_key("Chunks") && structs.contains_key("Scan"));
    }

    #[test]
    fn one_number_grows_with_each() {
        let raise = |layout| Layout { name: "X", role: Role::Kept, layout, key_size: 4, value_size: 4, entries: 1 };
        assert_eq!(raised(&[raise(1), raise(1)]), 0);
        assert_eq!(raised(&[raise(3), raise(1), raise(2)]), 3);
        assert!(layouts().all(|layout| layout.layout > 0));
        assert!(layouts().all(|layout| !RETIRED.contains(&layout.name)));
    }
}
