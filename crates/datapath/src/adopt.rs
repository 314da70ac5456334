//! Which pinned maps a new agent takes over, which it makes anew beside them, and when it must not come at all. The pin's name tells the map's layout:
//! `SERVICES` is the first one, `SERVICES-2` the second; `SERVICES-next` is being filled by an agent whose programs are not attached everywhere yet. Judges
//! names and sizes; opens no map but to read its sizes, and writes to none.

use super::pins;
use aya::maps::MapInfo;
use splitter_common::abi::{Layout, RETIRED, Role, layouts};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    path::{Path, PathBuf},
};

const NEXT: &str = "next";

/// A pinned map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    pub map: String,
    /// `None`: of an agent that has not taken over yet.
    pub layout: Option<u32>,
    /// Bytes of key and value, and entries; `None` when the kernel does not tell.
    pub sizes: Option<(usize, usize, u32)>,
}

/// Name of the pin of a map with a layout.
pub fn pin_name(map: &str, layout: u32) -> String {
    if layout == 1 { map.into() } else { format!("{map}-{layout}") }
}

/// Name of the pin of a map that is being filled.
pub fn next_name(map: &str) -> String {
    format!("{map}-{NEXT}")
}

/// What a pin's name says; `None`: no map's.
fn parse(file: &str) -> Option<(&str, Option<u32>)> {
    let Some((map, mark)) = file.split_once('-') else { return Some((file, Some(1))) };
    if mark == NEXT {
        return Some((map, None));
    }
    mark.parse().ok().filter(|layout| *layout > 1).map(|layout| (map, Some(layout)))
}

/// The maps that are pinned in a directory.
pub fn pinned(directory: &Path) -> Vec<Pinned> {
    let one = |(file, map, layout): (String, String, Option<u32>)| {
        let sizes = MapInfo::from_pin(directory.join(file)).ok();
        Pinned { map, layout, sizes: sizes.map(|info| (info.key_size() as usize, info.value_size() as usize, info.max_entries())) }
    };
    names(directory).map(one).collect()
}

/// A map that cannot be taken over, and must not be made anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Differs {
    pub map: String,
    /// What is pinned, and what this program has; 0: it does not know the map.
    pub pinned: u32,
    pub ours: u32,
}

impl fmt::Display for Differs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { map, pinned, ours } = self;
        match ours {
            0 => write!(f, "{map} (layout {pinned}, this program does not know the map)"),
            _ if ours == pinned => write!(f, "{map} (layout {pinned} in both, with other sizes)"),
            _ => write!(f, "{map} (layout {pinned}, this program has {ours})"),
        }
    }
}

/// What a load does with each map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adoption {
    /// Name of the pin that a map is opened by, or gets.
    files: BTreeMap<&'static str, String>,
    /// Maps that are made anew beside those that attached programs use, with the names that they will have.
    renewed: BTreeMap<&'static str, String>,
    /// Of these the entries are copied: only their fellows' layouts differ.
    copied: BTreeSet<&'static str>,
    /// Entries of the pins that were there.
    entries: BTreeMap<&'static str, u32>,
    /// The policy's maps are among those that are made anew.
    refilled: bool,
}

impl Adoption {
    /// How to come to maps of which no program uses any: each has the name of its layout.
    pub fn of_nothing(found: &[Pinned], layouts: impl Iterator<Item = &'static Layout>) -> Self {
        let mut adoption = Self::default();
        for layout in layouts {
            let largest =
                found.iter().filter(|pin| pin.map == layout.name && pin.layout.is_some()).filter_map(|pin| Some(pin.sizes?.2)).max();
            adoption.entries.extend(largest.map(|entries| (layout.name, entries)));
            adoption.files.insert(layout.name, pin_name(layout.name, layout.layout));
        }
        adoption
    }

    /// How to come to maps that attached programs use.
    ///
    /// # Errors
    /// Maps that connections depend on and that this program reads otherwise, or not at all.
    pub fn judge(found: &[Pinned], layouts: impl Iterator<Item = &'static Layout> + Clone, retired: &[&str]) -> Result<Self, Vec<Differs>> {
        let of = |map: &'static str| found.iter().filter(move |pin| pin.map == map && pin.layout.is_some());
        // An agent ended between its programs and its pins: what is pinned may be older than what is attached.
        let interrupted = found.iter().any(|pin| pin.layout.is_none());
        let fits = |layout: &Layout| {
            let mut pins = of(layout.name);
            pins.next().is_some_and(|pin| is(pin, layout)) && pins.next().is_none()
        };
        let mut differ = Vec::new();
        let unknown = |pin: &&Pinned| !retired.contains(&&*pin.map) && layouts.clone().all(|layout| layout.name != pin.map);
        differ.extend(found.iter().filter(unknown).filter_map(|pin| Some(Differs { map: pin.map.clone(), pinned: pin.layout?, ours: 0 })));
        let kept = layouts.clone().filter(|layout| layout.role == Role::Kept && !fits(layout));
        differ.extend(kept.filter_map(|layout| {
            let pin = of(layout.name).find(|pin| !is(pin, layout))?;
            Some(Differs { map: pin.map.clone(), pinned: pin.layout?, ours: layout.layout })
        }));
        if !differ.is_empty() {
            return Err(differ);
        }
        let mut adoption = Self::of_nothing(found, layouts.clone());
        adoption.refilled = interrupted || layouts.clone().any(|layout| layout.role == Role::Filled && !fits(layout));
        for layout in layouts {
            let anew = match layout.role {
                Role::Kept => false,
                Role::Filled => adoption.refilled,
                Role::Anew => of(layout.name).next().is_some() && !fits(layout),
            };
            if anew && let Some(name) = adoption.files.insert(layout.name, next_name(layout.name)) {
                adoption.renewed.insert(layout.name, name);
            }
            if anew && layout.role == Role::Filled && fits(layout) {
                adoption.copied.insert(layout.name);
            }
        }
        Ok(adoption)
    }

    /// Name of the pin of a map; its own for one that has no layout.
    pub fn file<'a>(&'a self, map: &'a str) -> &'a str {
        self.files.get(map).map_or(map, String::as_str)
    }

    /// Whether a map that is made anew gets the entries of the one that it replaces.
    pub fn copies(&self, map: &str) -> bool {
        self.copied.contains(map)
    }

    /// How many entries a map is to have; `None`: as the object says. One that is there keeps its size, and one in its place is not smaller.
    pub fn entries(&self, layout: &Layout, wanted: Option<u32>) -> Option<u32> {
        let known = self.entries.get(layout.name).copied();
        if self.renewed.contains_key(layout.name) { known.max(wanted.or(Some(layout.entries))) } else { known.or(wanted) }
    }

    /// Maps that are made anew.
    pub fn renewed(&self) -> impl Iterator<Item = &'static str> {
        self.renewed.keys().copied()
    }

    /// The policy's maps are made anew: no program must use them before they are filled.
    pub fn is_refilled(&self) -> bool {
        self.refilled
    }

    /// When no attached program uses another map any more: what was made anew gets its name, others go. An end in between leaves pins by which the next
    /// agent sees it.
    ///
    /// # Errors
    /// When the directory cannot be changed.
    pub fn settle(&mut self, directory: &Path) -> io::Result<()> {
        for (file, map, _) in names(directory) {
            if self.files.get(&*map).is_none_or(|ours| *ours != file) {
                fs::remove_file(directory.join(file))?;
            }
        }
        while let Some((map, name)) = self.renewed.pop_first() {
            fs::rename(directory.join(next_name(map)), directory.join(&name))?;
            self.files.insert(map, name);
        }
        self.refilled = false;
        Ok(())
    }
}

/// Files that are maps' pins, with map and layout.
fn names(directory: &Path) -> impl Iterator<Item = (String, String, Option<u32>)> {
    let own = |map: &str| map == pins::LINKS || pins::CALLS.contains(&map);
    pins::entries(directory).into_iter().filter_map(move |file| {
        let (map, layout) = parse(&file).filter(|(map, _)| !own(map))?;
        Some((file.clone(), map.into(), layout))
    })
}

/// Removes maps that an earlier agent had begun to fill.
///
/// # Errors
/// When a pin cannot be removed.
pub fn drop_next(directory: &Path) -> io::Result<()> {
    names(directory).filter(|(.., layout)| layout.is_none()).try_for_each(|(file, ..)| fs::remove_file(directory.join(file)))
}

fn is(pin: &Pinned, layout: &Layout) -> bool {
    pin.layout == Some(layout.layout) && pin.sizes.is_none_or(|(key, value, _)| (key, value) == (layout.key_size, layout.value_size))
}

/// Pins of a map, those of its layouts first.
pub fn pins_of(directory: &Path, map: &str) -> Vec<PathBuf> {
    let mut found: Vec<_> = names(directory).filter(|(_, name, _)| name == map).collect();
    found.sort_by_key(|(.., layout)| layout.is_none());
    found.into_iter().map(|(file, ..)| directory.join(file)).collect()
}

/// The name that the pin of one of this program's maps has.
pub fn own_name(map: &str) -> String {
    layouts().find(|layout| layout.name == map).map_or_else(|| map.into(), |layout| pin_name(map, layout.layout))
}

/// Maps that are pinned with this program's layout.
pub fn known(directory: &Path) -> BTreeSet<&'static str> {
    let found = pinned(directory);
    layouts().filter(|layout| found.iter().any(|pin| pin.map == layout.name && is(pin, layout))).map(|layout| layout.name).collect()
}

/// [`Adoption::judge`] of this program's own maps.
pub fn judge(directory: &Path) -> Result<Adoption, Vec<Differs>> {
    Adoption::judge(&pinned(directory), layouts(), RETIRED)
}

#[cfg(test)]
mod tests;
