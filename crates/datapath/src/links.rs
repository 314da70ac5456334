//! Programs on interfaces: pinned links, so that they outlive the agent, replaced in place by the next one, so that no packet misses them.

use super::{
    DatapathError, causes, clsact,
    detach::remove_link,
    hook::{Failure, Hook, pin_name},
    load::{self, TC, TC_EGRESS, XDP},
    netlink::Link,
    pins::LINKS,
};
use aya::{
    Ebpf,
    programs::{
        TcAttachType,
        links::{FdLink, LinkOrder, PinnedLink},
        tc::{SchedClassifierLink, TcAttachOptions},
        xdp::{XdpLink, XdpMode as Attach},
    },
};
use std::path::Path;

/// Puts the hook's program on an interface: into the pinned link if there is one, else by a new link.
pub fn attach(ebpf: &mut Ebpf, pins: &Path, link: &Link, hook: Hook) -> Result<(), DatapathError> {
    let name = pin_name(link.ifindex, hook);
    let path = pins.join(LINKS).join(&name);
    let failed = |error: Failure| {
        let hint = if hook == Hook::XdpNative { "; its driver may lack XDP: try --xdp generic" } else { "" };
        DatapathError::Attach { hook: hook.name(), interface: link.name.clone(), hint, cause: causes(error.as_ref()) }
    };
    if hook.is_clsact() {
        return clsact::attach(ebpf, pins, link, hook).map_err(failed);
    }
    if path.exists() {
        if replace(ebpf, &path, hook).is_ok() {
            return Ok(());
        }
        // The interface that it belonged to is gone, or it is none of ours.
        remove_link(pins, &name).map_err(|cause| DatapathError::Pins { path: path.clone(), cause })?;
    }
    let fd = create(ebpf, link, hook).map_err(failed)?;
    fd.pin(&path).map_err(|e| failed(Box::new(e)))?;
    Ok(())
}

fn create(ebpf: &mut Ebpf, link: &Link, hook: Hook) -> Result<FdLink, Failure> {
    match hook {
        // Those of clsact were dealt with before.
        Hook::TcxIngress | Hook::TcxEgress | Hook::ClsactIngress | Hook::ClsactEgress => {
            let (name, direction) = if hook == Hook::TcxIngress { (TC, TcAttachType::Ingress) } else { (TC_EGRESS, TcAttachType::Egress) };
            let program = load::classifier(ebpf, name)?;
            let tcx = TcAttachOptions::TcxOrder(LinkOrder::default());
            let id = program.attach_with_options(&link.name, direction, tcx)?;
            Ok(program.take_link(id)?.try_into()?)
        }
        Hook::XdpNative | Hook::XdpGeneric => {
            let program = load::xdp(ebpf, XDP)?;
            let mode = if hook == Hook::XdpNative { Attach::Driver } else { Attach::Skb };
            let id = program.attach_to_if_index(link.ifindex, mode)?;
            Ok(program.take_link(id)?.try_into()?)
        }
    }
}

fn replace(ebpf: &mut Ebpf, path: &Path, hook: Hook) -> Result<(), Failure> {
    let fd: FdLink = PinnedLink::from_pin(path)?.into();
    match hook {
        Hook::TcxIngress | Hook::TcxEgress | Hook::ClsactIngress | Hook::ClsactEgress => {
            let program = load::classifier(ebpf, if hook == Hook::TcxIngress { TC } else { TC_EGRESS })?;
            let id = program.attach_to_link(SchedClassifierLink::try_from(fd)?)?;
            // The pin holds the link; the program must not detach it when it is dropped.
            drop(program.take_link(id)?);
        }
        Hook::XdpNative | Hook::XdpGeneric => {
            let program = load::xdp(ebpf, XDP)?;
            let id = program.attach_to_link(XdpLink::try_from(fd)?)?;
            drop(program.take_link(id)?);
        }
    }
    Ok(())
}
