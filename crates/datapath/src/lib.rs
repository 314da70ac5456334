//! The kernel as the agent uses it: maps, programs, links, interfaces, and what they should hold. The only crate of the agent that knows aya, bpf(2) or
//! netlink. Its build script builds the kernel programs.
//!
//! | file | owns |
//! |---|---|
//! | `tables` | the maps by name and type, and the seam that tests replace (`memory`) |
//! | `memory` | the maps in ordinary memory, for tests |
//! | `plain` | plain data seen as bytes |
//! | `cookies` | the keys of clients' cookies |
//! | `bpf` | bpf(2) in batches |
//! | `marks` | which versions a judge has to read again |
//! | `adopt` | which pinned maps are taken over, by their layouts, and which are made anew |
//! | `load` | sizes, programs, the clock |
//! | `object` | the object's map definitions |
//! | `refusal` | why the kernel does not take a program or a map |
//! | `trial` | what this kernel takes, by trying it |
//! | `pins` | the directory on bpffs |
//! | `hook` | where programs can be attached |
//! | `links` | programs on interfaces |
//! | `clsact` | the same where the kernel has no TCX |
//! | `attached` | whether they still are there |
//! | `detach` | removing them, and everything else |
//! | `farewell` | the resets that connections of http get when everything is removed |
//! | `trace` | events of decisions |
//! | `diagnostics` | what the programs tell of themselves |
//! | `netfilter` | whether the node's firewall sees what it forwards |
//! | `netlink`, `interfaces` | which interfaces there are, and which are served |
//! | [`node`] | the node as a backend of the userspace tier's services |
//! | [`objects`] | what the build script built |
//! | [`plan`] | model to map image; pure |
//! | [`reconcile`] | brings the maps to the plan |

mod adopt;
mod attached;
mod bpf;
mod clsact;
mod cookies;
mod detach;
mod diagnostics;
mod farewell;
mod hook;
mod interfaces;
mod links;
mod load;
mod marks;
mod memory;
mod netfilter;
mod netlink;
pub mod node;
mod object;
pub mod objects;
mod pins;
mod plain;
pub mod plan;
pub mod reconcile;
mod refusal;
mod tables;
mod trace;
pub mod trial;

use diagnostics::Diagnostics;

pub use bpf::Kernel;
pub use detach::remove;
pub use hook::Hook;
pub use interfaces::{PatternError, Patterns, XdpMode, matches as glob};
pub use load::{Sizes, has_maps, heads_clock};
pub use memory::Memory;
pub use netfilter::{Firewall, Hooked};
pub use netlink::{Events, Link, Route, dump as interfaces, route_to};
pub use pins::{create as make_pins, directory};
pub use plain::{Plain, bytes_of, bytes_of_mut, read};
pub use refusal::{Refusal, missing as missing_capabilities};
pub use tables::*;
pub use trace::{Events as TraceEvents, monotonic};

use plan::addr;
use splitter_common::abi::{ABI_VERSION, Addr, Config, FIRST_ABI_VERSION, Iface, XDP_PORTS, xdp_port};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};
use thiserror::Error;

/// An error with all its causes: what failed stands in the first, why in the last.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// What to do about maps that cannot be taken over, and what that costs.
const DETACH: &str = "run `splitter detach`, then start the agent again (live flows are cut, counters and histograms are lost; the policy and weights are not)";

#[derive(Debug, Error)]
pub enum DatapathError {
    #[error("no bpffs to pin maps in ({0}): run `mount -t bpf bpf /sys/fs/bpf`, or name a directory on one with --pins")]
    NoBpffs(io::Error),
    #[error("{0} is not on a bpffs: name a directory on one with --pins (usually below /sys/fs/bpf)")]
    NotBpffs(PathBuf),
    #[error("cannot tell the network namespace: {0}; name a directory of its own for the pins with --pins")]
    Namespace(io::Error),
    // Not `source`: it stands in the text, and would stand there again in a chain of causes.
    #[error("cannot use {}: {cause}", path.display())]
    Pins { path: PathBuf, cause: io::Error },
    #[error("cannot use the map {}: {cause}", path.display())]
    Map { path: PathBuf, cause: String },
    #[error("the maps in {} have layout {found}, from before maps had layouts of their own ({expected}): {DETACH}", pins.display())]
    Abi { pins: PathBuf, found: u32, expected: u32 },
    /// `maps`: which, with both layouts.
    #[error("connections depend on maps in {} that this program reads otherwise than the agent that made them: {maps}. Nothing was changed, and traffic goes on as before. Go back to that agent, or {DETACH}", pins.display())]
    Layouts { pins: PathBuf, maps: String },
    #[error("the policy's maps in {} have to be made anew for this program, and no policy could be applied to them: nothing was changed, and traffic goes on as before. Start the agent with a policy that it can apply", pins.display())]
    NotFilled { pins: PathBuf },
    #[error("Linux {release} does not take the kernel object: {cause}")]
    Load { release: String, cause: String },
    #[error("{0}")]
    Refused(Refusal),
    #[error("cannot use the program {program}: {cause}")]
    Program { program: String, cause: String },
    #[error("the kernel object has no program {0}: this is a bug")]
    NoProgram(&'static str),
    #[error("cannot attach {hook} to {interface}: {cause}{hint}")]
    Attach { hook: &'static str, interface: String, hint: &'static str, cause: String },
    #[error("cannot list the interfaces: {0}")]
    Netlink(io::Error),
    #[error("cannot count the CPUs: {0}")]
    Cpus(io::Error),
    #[error(transparent)]
    Table(#[from] TableError),
}

impl DatapathError {
    fn abi(pins: &Path, found: u32) -> Self {
        Self::Abi { pins: pins.into(), found, expected: FIRST_ABI_VERSION }
    }

    fn layouts(pins: &Path, differ: &[adopt::Differs]) -> Self {
        let maps: Vec<String> = differ.iter().map(ToString::to_string).collect();
        Self::Layouts { pins: pins.into(), maps: maps.join(", ") }
    }

    fn map(path: &Path, error: impl std::error::Error) -> Self {
        Self::Map { path: path.into(), cause: causes(&error) }
    }

    /// `program`: by name.
    fn program(program: &str, error: &aya::programs::ProgramError) -> Self {
        match error {
            aya::programs::ProgramError::LoadError { .. } => Self::Refused(Refusal::of(program, error)),
            other => Self::Program { program: program.into(), cause: causes(other) },
        }
    }
}

/// How long a backend that refused a connection gets no new one.
const SUSPECT_SECONDS: u32 = 5;
/// Source ports for translation, first and count: what lies between the well-known ones and those that the node's own connections use, when that is more than
/// this.
const SNAT_PORTS: (u16, u16) = (10_000, 20_000);
const WELL_KNOWN: u16 = 1_024;

/// The ports that the node's own connections use, in the network namespace of the thread that reads it.
const LOCAL_PORTS: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// First source port for translation, and how many there are. `local`: [`LOCAL_PORTS`].
fn snat_ports(local: &str) -> (u16, u16) {
    let below = local.split_whitespace().next().and_then(|low| low.parse::<u16>().ok());
    let count = below.map_or(0, |low| low.saturating_sub(WELL_KNOWN));
    if count > SNAT_PORTS.1 { (WELL_KNOWN, count) } else { SNAT_PORTS }
}

/// An interface that is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    pub ifindex: u32,
    pub name: String,
    /// Where its programs are.
    pub hooks: Vec<Hook>,
    /// Where they should be and are not: refused, or lost.
    pub missing: Vec<Hook>,
    /// Packets to its peer skip the queue.
    pub peer: bool,
}

/// Programs, maps and links of one network namespace: that of the thread which opens it, and which must be the one that uses it.
pub struct Datapath {
    pub tables: Kernel,
    /// Ends with the programs.
    _diagnostics: Option<Diagnostics>,
    ebpf: aya::Ebpf,
    pins: PathBuf,
    adopted: bool,
    adoption: adopt::Adoption,
    /// What [`Datapath::serve`] waits for, and whether no attached program uses other maps any more.
    filled: bool,
    settled: bool,
    config: Config,
    /// When a key of cookies was last replaced, in epochs.
    cookies_turned: Option<u64>,
    ticks_per_second: u32,
    /// Filters of clsact instead of TCX links.
    clsact: bool,
    /// Interfaces as they were at the last look, and their rows in `IFACES`.
    served: BTreeMap<u32, Served>,
    rows: BTreeMap<u32, Iface>,
    /// The node's addresses, as the kernel programs know them; `None`: not looked at.
    own: Option<BTreeSet<Addr>>,
    failed: BTreeSet<(u32, Hook)>,
    ids: attached::ProgramIds,
    /// Maps that have pins, with the names of these.
    pinned: Vec<(String, String)>,
}

/// A program that somebody else took from its hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    pub interface: String,
    pub hook: Hook,
}

impl Datapath {
    /// Loads the programs over new or pinned maps. Nothing is attached yet.
    pub fn open(pins: &Path, sizes: Sizes) -> Result<Self, DatapathError> {
        let ticks_per_second = load::ticks_per_second();
        let (snat_port_first, snat_port_count) = snat_ports(&std::fs::read_to_string(LOCAL_PORTS).unwrap_or_default());
        let config = Config {
            abi_version: ABI_VERSION,
            suspect_ticks: SUSPECT_SECONDS * ticks_per_second,
            snat_port_first,
            snat_port_count,
            max_flows: sizes.max_flows,
            secret: load::secret()?,
            cookies: [load::secret()?, load::secret()?],
            xdp_ports: [0; XDP_PORTS as usize],
        };
        let mut loaded = load::load(pins, sizes, config)?;
        let diagnostics = if sizes.diagnostics { Some(Diagnostics::of(&mut loaded.ebpf)?) } else { None };
        let config = CONFIG.get(&loaded.kernel, 0)?.unwrap_or(config);
        let mut rows = BTreeMap::new();
        IFACES.each(&loaded.kernel, |ifindex, row| {
            rows.insert(ifindex, row);
        })?;
        Ok(Self {
            ids: attached::program_ids(&loaded.ebpf),
            pinned: attached::pinned(pins, &loaded.ebpf, &loaded.adoption),
            filled: !loaded.adoption.is_refilled(),
            settled: !loaded.adopted,
            adoption: loaded.adoption,
            tables: loaded.kernel,
            _diagnostics: diagnostics,
            ebpf: loaded.ebpf,
            pins: pins.into(),
            adopted: loaded.adopted,
            config,
            cookies_turned: None,
            ticks_per_second,
            clsact: clsact::is_needed(),
            served: BTreeMap::new(),
            rows,
            own: None,
            failed: BTreeSet::new(),
        })
    }

    /// Makes the maps anew, larger; what they held is lost. Links get the new programs at the next [`Datapath::serve`].
    pub fn recreate(self, sizes: Sizes) -> Result<Self, DatapathError> {
        let pins = self.pins.clone();
        drop(self);
        pins::remove_maps(&pins).map_err(|cause| DatapathError::Pins { path: pins.clone(), cause })?;
        Self::open(&pins, sizes)
    }

    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// The maps were taken over from an earlier agent.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// Maps that were made anew beside those of an earlier agent, since their layouts differ; none once it has no program left.
    pub fn renewed(&self) -> Vec<&'static str> {
        self.adoption.renewed().collect()
    }

    /// Says that the policy's maps hold a policy: programs can be attached.
    pub fn filled(&mut self) {
        self.filled = true;
    }

    /// The clock of the flow tables, and how many of its ticks make a second.
    pub fn ticks(&self) -> Result<(u32, u32), DatapathError> {
        Ok((load::ticks(&self.ebpf)?, self.ticks_per_second))
    }

    pub fn served(&self) -> impl Iterator<Item = &Served> {
        self.served.values()
    }

    /// The smallest MTU of the served interfaces, bytes; `None` before any is served.
    pub fn mtu(&self) -> Option<u32> {
        let attached = self.served.values().filter(|served| !served.hooks.is_empty());
        attached.filter_map(|served| self.rows.get(&served.ifindex)).map(|row| row.mtu).filter(|mtu| *mtu > 0).min()
    }

    /// Asks the kernel whether everything is still attached; what is not counts as missing until the next [`Datapath::serve`], which puts it back.
    pub fn look_again(&mut self) -> Vec<Lost> {
        let Self { served, ids, pins, .. } = self;
        let mut lost = Vec::new();
        for served in served.values_mut() {
            let gone = served.hooks.extract_if(.., |hook| !attached::is_attached(ids, pins, served.ifindex, *hook));
            let gone: Vec<_> = gone.collect();
            lost.extend(gone.iter().map(|hook| Lost { interface: served.name.clone(), hook: *hook }));
            served.missing.extend(gone);
        }
        lost
    }

    /// Pins maps that lost their pins; returns how many. The directory is there.
    pub fn pin_again(&self) -> Result<usize, DatapathError> {
        attached::pin_again(&self.pins, &self.ebpf, &self.pinned)
    }

    /// Attaches to what is new among `links`, forgets what is gone; returns what went wrong, each once. Known links are left alone.
    ///
    /// # Errors
    /// When maps that were made anew are empty, among others: nothing is attached then.
    pub fn serve(&mut self, links: &[Link], patterns: &Patterns, xdp: XdpMode) -> Result<Vec<DatapathError>, DatapathError> {
        let in_pins = |pins: &Path| {
            let path = pins.to_path_buf();
            move |cause| DatapathError::Pins { path, cause }
        };
        if !self.filled {
            adopt::drop_next(&self.pins).map_err(in_pins(&self.pins))?;
            return Err(DatapathError::NotFilled { pins: self.pins.clone() });
        }
        // Before their programs come: what these do not know of an interface, they pass by.
        self.publish_own(links)?;
        self.publish_new(links, patterns, xdp)?;
        let mut errors = Vec::new();
        let mut served = BTreeMap::new();
        let mut rows = BTreeMap::new();
        for link in links {
            let choice = patterns.choose(link);
            let (mut hooks, mut missing) = (Vec::new(), Vec::new());
            if choice.served {
                (hooks, missing) = self.attach(link, choice.uplink, xdp, &mut errors);
            }
            let attached = if hooks.iter().any(|hook| Some(*hook) == Hook::xdp(xdp)) { xdp } else { XdpMode::Off };
            let row = interfaces::row(link, choice, attached, xdp);
            rows.insert(link.ifindex, row);
            if choice.served {
                let peer = row.flags & splitter_common::abi::iface_flag::PEER != 0;
                served.insert(link.ifindex, Served { ifindex: link.ifindex, name: link.name.clone(), hooks, missing, peer });
            }
        }
        self.publish(&rows, links)?;
        self.served = served;
        self.drop_stale_links()?;
        if errors.is_empty() {
            pins::drop_calls_aside(&self.pins).map_err(in_pins(&self.pins))?;
            self.settle().map_err(in_pins(&self.pins))?;
        }
        self.failed.retain(|(ifindex, _)| rows.contains_key(ifindex));
        self.rows = rows;
        Ok(errors)
    }

    fn attach(&mut self, link: &Link, uplink: bool, xdp: XdpMode, errors: &mut Vec<DatapathError>) -> (Vec<Hook>, Vec<Hook>) {
        let (ingress, egress) = if self.clsact { (Hook::ClsactIngress, Hook::ClsactEgress) } else { (Hook::TcxIngress, Hook::TcxEgress) };
        let mut wanted = vec![ingress];
        if self.ebpf.program(load::TC_EGRESS).is_some() {
            wanted.push(egress);
        }
        if uplink {
            wanted.extend(Hook::xdp(xdp));
        }
        let known = self.served.get(&link.ifindex).map(|served| served.hooks.clone()).unwrap_or_default();
        wanted.into_iter().partition(|hook| {
            if known.contains(hook) && attached::is_attached(&self.ids, &self.pins, link.ifindex, *hook) {
                return true;
            }
            // The two modes exclude each other on an interface.
            let other = match hook {
                Hook::XdpNative => Some(Hook::XdpGeneric),
                Hook::XdpGeneric => Some(Hook::XdpNative),
                _ => None,
            };
            if let Some(other) = other
                && let Err(error) = detach::remove_link(&self.pins, &hook::pin_name(link.ifindex, other))
            {
                tracing::debug!(%error, "pin of the other XDP mode");
            }
            match links::attach(&mut self.ebpf, &self.pins, link, *hook) {
                Ok(()) => {
                    self.failed.remove(&(link.ifindex, *hook));
                    true
                }
                Err(error) => {
                    // Once, not at every look.
                    if self.failed.insert((link.ifindex, *hook)) {
                        errors.push(error);
                    }
                    false
                }
            }
        })
    }

    /// Gives maps that were made anew the names by which the next agent finds them: no attached program uses the others any more.
    fn settle(&mut self) -> std::io::Result<()> {
        if !std::mem::replace(&mut self.settled, true) {
            self.adoption.settle(&self.pins).inspect_err(|_| self.settled = false)?;
            self.pinned = attached::pinned(&self.pins, &self.ebpf, &self.adoption);
        }
        Ok(())
    }

    /// Tells the kernel programs about interfaces that they do not know yet, as if no XDP were there.
    fn publish_new(&mut self, links: &[Link], patterns: &Patterns, xdp: XdpMode) -> Result<(), TableError> {
        let new = links.iter().filter(|link| !self.rows.contains_key(&link.ifindex));
        let new: Vec<_> = new.map(|link| (link.ifindex, interfaces::row(link, patterns.choose(link), XdpMode::Off, xdp))).collect();
        IFACES.put(&mut self.tables, &new)?;
        self.rows.extend(new);
        Ok(())
    }

    /// Tells the kernel programs about the interfaces.
    fn publish(&mut self, rows: &BTreeMap<u32, Iface>, links: &[Link]) -> Result<(), TableError> {
        let changed: Vec<_> = rows.iter().filter(|(ifindex, row)| self.rows.get(ifindex) != Some(row)).map(|(i, row)| (*i, *row)).collect();
        IFACES.put(&mut self.tables, &changed)?;
        let gone: Vec<u32> = self.rows.keys().filter(|ifindex| !rows.contains_key(ifindex)).copied().collect();
        IFACES.delete(&mut self.tables, &gone)?;
        let mut ports = [0u64; XDP_PORTS as usize];
        for link in links {
            let forwards = |row: &Iface| row.flags & splitter_common::abi::iface_flag::XDP_FORWARD != 0;
            let Some([a, b, c, d, e, f]) = link.mac.filter(|_| rows.get(&link.ifindex).is_some_and(forwards)) else { continue };
            let port = &mut ports[(link.ifindex % XDP_PORTS) as usize];
            if *port == 0 {
                *port = xdp_port(link.ifindex, u32::from_ne_bytes([a, b, c, d]), u16::from_ne_bytes([e, f]));
            }
        }
        if ports != self.config.xdp_ports {
            self.config.xdp_ports = ports;
            CONFIG.put_one(&mut self.tables, 0, self.config)?;
        }
        Ok(())
    }

    /// Tells them the node's own addresses: what is sent to one of these is the stack's, whatever services have.
    fn publish_own(&mut self, links: &[Link]) -> Result<(), TableError> {
        let own: BTreeSet<Addr> = links.iter().flat_map(|link| &link.addresses).map(|ip| addr(*ip)).collect();
        if self.own.as_ref() == Some(&own) {
            return Ok(());
        }
        let mut known = BTreeSet::new();
        OWNED.each(&self.tables, |addr, _| {
            known.insert(addr);
        })?;
        let rows: Vec<_> = own.difference(&known).map(|addr| (*addr, 1)).collect();
        let gone: Vec<_> = known.difference(&own).copied().collect();
        OWNED.put(&mut self.tables, &rows)?;
        OWNED.delete(&mut self.tables, &gone)?;
        self.own = Some(own);
        Ok(())
    }

    /// Removes the pins of interfaces that are gone or not served any more.
    fn drop_stale_links(&self) -> Result<(), DatapathError> {
        for name in pins::entries(&self.pins.join(pins::LINKS)) {
            let stands_for = |served: &Served, hook: Hook| {
                hook::pin_name(served.ifindex, hook) == name || hook.is_clsact() && clsact::qdisc_pin(served.ifindex) == name
            };
            let wanted = self.served.values().any(|served| served.hooks.iter().any(|hook| stands_for(served, *hook)));
            if !wanted {
                detach::remove_link(&self.pins, &name).map_err(|cause| DatapathError::Pins { path: self.pins.join(&name), cause })?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_for_translation_are_none_of_the_nodes_own() {
        for (local, ports) in [
            ("32768\t60999\n", (1_024, 31_744)),
            ("40000 65535", (1_024, 38_976)),
            // Ports of its own below: the old range, whatever they are.
            ("1024 65535", SNAT_PORTS),
            ("20000 60999", SNAT_PORTS),
            ("", SNAT_PORTS),
            ("x y", SNAT_PORTS),
        ] {
            assert_eq!(snat_ports(local), ports, "{local:?}");
        }
    }
}
