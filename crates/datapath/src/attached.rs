//! Whether what was attached and pinned still is: anybody with the rights can detach a program, remove a pin or a qdisc. Asks the kernel each
//! time, and remembers nothing.

use super::{
    DatapathError,
    adopt::Adoption,
    bpf::{self, Tcx},
    clsact,
    hook::{Hook, pin_name},
    load, pins,
};
use aya::Ebpf;
use std::{collections::BTreeMap, path::Path};

/// Ids of the loaded programs that can be attached, by name.
pub type ProgramIds = BTreeMap<&'static str, u32>;

pub fn program_ids(ebpf: &Ebpf) -> ProgramIds {
    let id = |name: &'static str| Some((name, ebpf.program(name)?.info().ok()?.id()));
    [load::TC, load::TC_EGRESS, load::XDP].into_iter().filter_map(id).collect()
}

/// Whether an interface runs our program at a hook, and the pin that keeps it there is in its place. What cannot be told counts as yes, as of
/// an interface that has just gone.
pub fn is_attached(ids: &ProgramIds, directory: &Path, ifindex: u32, hook: Hook) -> bool {
    let pin = directory.join(pins::LINKS).join(pin_name(ifindex, hook));
    if !pin.exists() {
        return pins::interface_name(ifindex).is_none();
    }
    let runs = |ids: &ProgramIds, at, name| {
        let wanted = ids.get(name).copied();
        bpf::programs_on(ifindex, at).map_or(true, |found| wanted.is_none_or(|id| found.contains(&id)))
    };
    match hook {
        Hook::TcxIngress => runs(ids, Tcx::Ingress, load::TC),
        Hook::TcxEgress => runs(ids, Tcx::Egress, load::TC_EGRESS),
        Hook::ClsactIngress | Hook::ClsactEgress => clsact::is_there(ifindex, hook),
        Hook::XdpNative | Hook::XdpGeneric => {
            let target = bpf::open_pin(&pin).and_then(|link| bpf::link_target(&link));
            let wanted = ids.get(load::XDP).copied();
            target.map_or(true, |(program, on)| on == ifindex && wanted.is_none_or(|id| id == program))
                || pins::interface_name(ifindex).is_none()
        }
    }
}

/// Maps that are pinned, right after loading, with the names of their pins.
pub fn pinned(directory: &Path, ebpf: &Ebpf, adoption: &Adoption) -> Vec<(String, String)> {
    let names = ebpf.maps().map(|(name, _)| (name.to_owned(), adoption.file(name).to_owned()));
    names.filter(|(_, file)| directory.join(file).exists()).collect()
}

/// Pins what lost its pin: maps live on as long as this process holds them, and the next agent is to find them. Returns how many there were.
pub fn pin_again(directory: &Path, ebpf: &Ebpf, names: &[(String, String)]) -> Result<usize, DatapathError> {
    let lost = names.iter().map(|(name, file)| (name, directory.join(file))).filter(|(_, path)| !path.exists());
    lost.filter_map(|(name, path)| Some((ebpf.map(name)?, path))).try_fold(0, |count, (map, path)| {
        map.pin(&path).map_err(|error| DatapathError::map(&path, error))?;
        Ok(count + 1)
    })
}
