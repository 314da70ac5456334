//! Programs on interfaces where the kernel has no TCX links (before Linux 6.6): filters of clsact, in direct action mode.
//!
//! A filter has no descriptor, and stays whatever becomes of its maker. So that the next agent and `detach` know which are ours, the program is
//! pinned under the name that a link would have, before its filter is made; one more pin marks a clsact that was made for it. Priority and
//! handle are fixed: the program is replaced in place, and no packet misses it. Filters of others are left alone.

use super::{
    bpf, causes,
    hook::{Failure, Hook, pin_name},
    load::{self, TC, TC_EGRESS},
    netlink::{self, Direction, Link},
    pins::{LINKS, interface_name},
};
use aya::{
    Ebpf,
    programs::{
        SchedClassifier, TcAttachType,
        links::Link as _,
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
    },
};
use std::{fs, io, path::Path};

/// Filters of lower priorities, which run earlier, are others' who mean it.
const PRIORITY: u16 = 7_330;
const HANDLE: TcHandle = TcHandle::new(0, 0x5b1);
/// Of the pin that marks a clsact of ours.
const QDISC: &str = "clsact-qdisc";

/// To use clsact where the kernel has TCX too: for tests.
const FORCED: &str = "SPLITTER_CLSACT";

pub fn is_forced() -> bool {
    std::env::var_os(FORCED).is_some_and(|value| !value.is_empty())
}

/// Whether programs go to clsact.
pub fn is_needed() -> bool {
    // What cannot be told is found out by attaching.
    is_forced() || matches!(bpf::has_tcx(), Ok(false))
}

/// Gives loopback of this network namespace a clsact and a filter with the program, and takes them away again.
pub fn rehearse(program: &mut SchedClassifier) -> Result<(), Failure> {
    const LOOPBACK: u32 = 1;
    let failed = |what: &'static str| move |error: io::Error| format!("{what} cannot be had: {error}");
    netlink::add_clsact(LOOPBACK).map_err(failed("clsact (module sch_ingress)"))?;
    let options = NlOptions { priority: PRIORITY, handle: HANDLE, ..NlOptions::default() };
    let attached = program.attach_with_options("lo", TcAttachType::Ingress, TcAttachOptions::Netlink(options));
    let attached = attached.and_then(|id| {
        // It goes with its clsact.
        std::mem::forget(program.take_link(id)?);
        Ok(())
    });
    netlink::remove_clsact(LOOPBACK)?;
    attached.map_err(|error| format!("a BPF filter (module cls_bpf) cannot be had: {}", causes(&error)).into())
}

fn direction(hook: Hook) -> Option<(Direction, TcAttachType, &'static str)> {
    match hook {
        Hook::ClsactIngress => Some((Direction::Ingress, TcAttachType::Ingress, TC)),
        Hook::ClsactEgress => Some((Direction::Egress, TcAttachType::Egress, TC_EGRESS)),
        _ => None,
    }
}

/// Name of the pin that marks an interface's clsact as made by an agent.
pub fn qdisc_pin(ifindex: u32) -> String {
    format!("{ifindex}-{QDISC}")
}

/// Whether a hook of clsact still has its filter: a link stays, a filter can be removed by anybody. Other hooks have it.
pub fn is_there(ifindex: u32, hook: Hook) -> bool {
    let Some((direction, ..)) = direction(hook) else { return true };
    // What cannot be told is looked at again.
    netlink::filters(ifindex, direction).map_or(true, |filters| filters.contains(&(PRIORITY, HANDLE.into())))
}

/// Puts the hook's program on an interface: in place of the one that is there, else by a new filter.
pub fn attach(ebpf: &mut Ebpf, pins: &Path, link: &Link, hook: Hook) -> Result<(), Failure> {
    let Some((_, attach, name)) = direction(hook) else { return Err("not a hook of clsact".into()) };
    let path = pins.join(LINKS).join(pin_name(link.ifindex, hook));
    let program = load::classifier(ebpf, name)?;
    let marker = pins.join(LINKS).join(qdisc_pin(link.ifindex));
    if netlink::add_clsact(link.ifindex)? && !marker.exists() {
        program.pin(&marker)?;
    } else if marker.exists() {
        // A pin keeps its program: this one must not be that of an agent long gone.
        let renewed = marker.with_file_name(format!("{}-new", qdisc_pin(link.ifindex)));
        program.pin(&renewed)?;
        fs::rename(&renewed, &marker)?;
    }
    if path.exists() && is_there(link.ifindex, hook) {
        let old = SchedClassifierLink::attached(&link.name, attach, PRIORITY, HANDLE, None)?;
        let id = program.attach_to_link(old)?;
        // The filter stays when this agent ends.
        std::mem::forget(program.take_link(id)?);
        fs::remove_file(&path)?;
        return Ok(program.pin(&path)?);
    }
    if !path.exists() {
        program.pin(&path)?;
    }
    let options = NlOptions { priority: PRIORITY, handle: HANDLE, ..NlOptions::default() };
    let id = program.attach_with_options(&link.name, attach, TcAttachOptions::Netlink(options))?;
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

/// Removes what a pin stands for, if it is one of these; `false` for pins of links.
pub fn remove(name: &str) -> io::Result<bool> {
    let Some((index, what)) = name.split_once('-') else { return Ok(false) };
    let hook = [Hook::ClsactIngress, Hook::ClsactEgress].into_iter().find(|hook| hook.name() == what);
    let ifindex: u32 = index.parse().unwrap_or(0);
    match hook.and_then(direction) {
        Some((_, attach, _)) => {
            // Gone with its interface, or removed by somebody: nothing to do.
            if let Some(interface) = interface_name(ifindex).filter(|_| hook.is_some_and(|hook| is_there(ifindex, hook))) {
                let filter = SchedClassifierLink::attached(&interface, attach, PRIORITY, HANDLE, None)?;
                filter.detach().map_err(io::Error::other)?;
            }
        }
        None if what == QDISC => {
            let empty = |direction| netlink::filters(ifindex, direction).is_ok_and(|filters| filters.is_empty());
            if interface_name(ifindex).is_some() && empty(Direction::Ingress) && empty(Direction::Egress) {
                match netlink::remove_clsact(ifindex) {
                    Err(e) if !matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOENT | libc::ENODEV)) => return Err(e),
                    _ => {}
                }
            }
        }
        None => return Ok(false),
    }
    Ok(true)
}
