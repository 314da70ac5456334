//! How links are taken away, and everything else when the node is left.

use super::{
    DatapathError, bpf, clsact, farewell, node,
    pins::{LINKS, entries, interface_name},
};
use std::{fs, io, path::Path};

/// Detaches what one pin of [`LINKS`] stands for, a link or a filter of clsact, and removes the pin.
pub fn remove_link(pins: &Path, name: &str) -> io::Result<()> {
    let path = pins.join(LINKS).join(name);
    if !clsact::remove(name)?
        && let Ok(link) = bpf::open_pin(&path)
    {
        // Not possible when its interface is gone: then it is detached already.
        let _ = bpf::detach_link(&link);
    }
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Removes links, maps and directories; returns one line for each thing.
pub fn remove(pins: &Path) -> Result<Vec<String>, DatapathError> {
    let mut lines = Vec::new();
    let failed = |cause| DatapathError::Pins { path: pins.into(), cause };
    for name in entries(&pins.join(LINKS)) {
        remove_link(pins, &name).map_err(failed)?;
        let (index, program) = name.split_once('-').unwrap_or(("", &name));
        let interface = index.parse().ok().and_then(interface_name).unwrap_or_else(|| format!("interface {index} (gone)"));
        lines.push(format!("link {program} on {interface}"));
    }
    for address in node::remove_addresses().map_err(failed)? {
        lines.push(format!("address {address} of the loopback interface"));
    }
    match farewell::reset_spliced(pins) {
        Ok(0) => {}
        Ok(connections) => lines.push(format!("{connections} http connections: both ends are reset")),
        // What is left is to be removed all the same.
        Err(error) => lines.push(format!("http connections could not be reset, and hang until their ends give up: {error}")),
    }
    for name in entries(pins).into_iter().filter(|name| name != LINKS) {
        fs::remove_file(pins.join(&name)).map_err(failed)?;
        lines.push(format!("map {name}"));
    }
    for directory in [pins.join(LINKS), pins.to_path_buf()] {
        if directory.is_dir() {
            fs::remove_dir(&directory).map_err(failed)?;
        }
    }
    if !lines.is_empty() {
        lines.push(format!("directory {}", pins.display()));
    }
    // Shared by all network namespaces: goes with the last.
    if let Some(parent) = pins.parent().filter(|parent| parent.ends_with("splitter")) {
        let _ = fs::remove_dir(parent);
    }
    Ok(lines)
}
