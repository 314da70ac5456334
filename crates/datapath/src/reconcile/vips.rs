//! What the node does with packets to addresses of frontends that no service has. Several services may have ports of one address: what one of them
//! wants holds.

use super::Planned;
use crate::{TableError, Tables, VIPS};
use splitter_common::abi::{Addr, vip_flag};
use std::collections::{HashMap, HashSet};

/// How many frontends an address has, and how many of them want echoes answered, and what is not served left alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wanted {
    frontends: usize,
    ping: usize,
    pass: usize,
}

impl Wanted {
    const fn flags(self) -> u32 {
        let ping = if self.ping > 0 { vip_flag::PING } else { 0 };
        if self.pass > 0 { ping | vip_flag::PASS } else { ping }
    }
}

/// The addresses of all services that were applied.
#[derive(Debug, Default)]
pub struct Vips {
    wanted: HashMap<Addr, Wanted>,
    /// Those that the kernel does not have so yet.
    changed: HashSet<Addr>,
}

impl Vips {
    /// A service takes another's place, or its own; or none.
    pub fn replace(&mut self, old: Option<&Planned>, new: Option<&Planned>) {
        let same = |(old, new): (&Planned, &Planned)| old.image.vip == new.image.vip && old.image.frontends == new.image.frontends;
        if old.zip(new).is_some_and(same) {
            return;
        }
        for (planned, one) in [(new, true), (old, false)] {
            let Some(image) = planned.map(|planned| &planned.image) else { continue };
            for frontend in &image.frontends {
                let wanted = self.wanted.entry(frontend.addr).or_default();
                let step = |count: &mut usize, flag: u32| match image.vip & flag != 0 {
                    true if one => *count += 1,
                    true => *count = count.saturating_sub(1),
                    false => {}
                };
                wanted.frontends = if one { wanted.frontends + 1 } else { wanted.frontends.saturating_sub(1) };
                step(&mut wanted.ping, vip_flag::PING);
                step(&mut wanted.pass, vip_flag::PASS);
                self.changed.insert(frontend.addr);
            }
        }
    }

    /// Writes what has changed.
    pub fn put(&mut self, tables: &mut impl Tables) -> Result<(), TableError> {
        let (mut rows, mut gone) = (Vec::new(), Vec::new());
        for addr in &self.changed {
            match self.wanted.get(addr).filter(|wanted| wanted.frontends > 0) {
                Some(wanted) => rows.push((*addr, wanted.flags())),
                None => gone.push(*addr),
            }
        }
        VIPS.put(tables, &rows)?;
        VIPS.delete(tables, &gone)?;
        for addr in &gone {
            self.wanted.remove(addr);
        }
        self.changed.clear();
        Ok(())
    }

    /// Compares all that the kernel has, and writes what differs.
    pub fn repair(&mut self, tables: &mut impl Tables) -> Result<(), TableError> {
        let mut known = HashMap::new();
        VIPS.each(tables, |addr, flags| {
            known.insert(addr, flags);
        })?;
        self.changed.clear();
        self.wanted.retain(|_, wanted| wanted.frontends > 0);
        self.changed.extend(known.keys().filter(|addr| !self.wanted.contains_key(*addr)));
        let differs = |(addr, wanted): &(&Addr, &Wanted)| known.get(*addr) != Some(&wanted.flags());
        self.changed.extend(self.wanted.iter().filter(differs).map(|(addr, _)| *addr));
        self.put(tables)
    }
}
