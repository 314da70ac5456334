//! Where this node's pins are: a bpffs, and in it one directory for each network namespace.

use super::DatapathError;
use std::{
    ffi::CString,
    fs, io,
    os::{fd::AsRawFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
const SO_NETNS_COOKIE: libc::c_int = 71;
const USUAL: &str = "/sys/fs/bpf";
/// Seen from the host's mount namespace: `ip netns exec` and containers hide the usual place.
const HOST: &str = "/proc/1/root/sys/fs/bpf";

/// Links are pinned here, below the directory of the maps.
pub const LINKS: &str = "links";

pub fn is_bpffs(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: plain C struct of integers.
    let mut info: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a C string, and a struct to write to.
    let result = unsafe { libc::statfs(path.as_ptr(), &mut info) };
    result == 0 && info.f_type as u64 == BPF_FS_MAGIC
}

/// A number of the calling thread's network namespace that is unique until the next boot (Linux 5.14).
fn namespace_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").or_else(|_| std::net::UdpSocket::bind("[::]:0"))?;
    let (mut cookie, mut length) = (0u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: the buffer is eight bytes long, as said.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, (&raw mut cookie).cast(), &raw mut length) };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

fn filesystem(mount: bool) -> Result<PathBuf, DatapathError> {
    for place in [USUAL, HOST] {
        if is_bpffs(Path::new(place)) {
            return Ok(place.into());
        }
    }
    if !mount {
        return Err(DatapathError::NoBpffs(io::Error::from(io::ErrorKind::NotFound)));
    }
    // SAFETY: C strings; no data.
    let result = unsafe { libc::mount(c"bpf".as_ptr(), c"/sys/fs/bpf".as_ptr(), c"bpf".as_ptr(), 0, std::ptr::null()) };
    if result == 0 { Ok(USUAL.into()) } else { Err(DatapathError::NoBpffs(io::Error::last_os_error())) }
}

/// The directory of this namespace's pins; it may not exist yet. `mount`: whether to mount a bpffs where there is none.
pub fn directory(explicit: Option<&Path>, mount: bool) -> Result<PathBuf, DatapathError> {
    match explicit {
        Some(path) => Ok(path.into()),
        None => {
            let cookie = namespace_cookie().map_err(DatapathError::Namespace)?;
            Ok(filesystem(mount)?.join("splitter").join(format!("net-{cookie}")))
        }
    }
}

/// Makes the directories.
pub fn create(pins: &Path) -> Result<(), DatapathError> {
    let failed = |cause| DatapathError::Pins { path: pins.into(), cause };
    fs::create_dir_all(pins.join(LINKS)).map_err(failed)?;
    if is_bpffs(pins) { Ok(()) } else { Err(DatapathError::NotBpffs(pins.into())) }
}

/// Names in a directory, sorted; none when there is no such directory.
pub fn entries(path: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Name of an interface of this network namespace.
pub fn interface_name(ifindex: u32) -> Option<String> {
    let mut name = [0 as libc::c_char; libc::IF_NAMESIZE];
    // SAFETY: the buffer is as long as the call demands.
    let found = unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr()) };
    // SAFETY: on success the buffer holds a C string.
    (!found.is_null()).then(|| unsafe { std::ffi::CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned())
}

/// Tables of programs. Attached programs that are still to be replaced go on with theirs: the next load makes new ones.
pub const CALLS: [&str; 2] = ["TC_CALLS", "XDP_CALLS"];
const ASIDE: &str = "-aside-";

/// Puts the tables of programs aside.
pub fn set_calls_aside(pins: &Path) -> io::Result<()> {
    for name in CALLS {
        let path = pins.join(name);
        if path.exists() {
            fs::rename(&path, pins.join(format!("{name}{ASIDE}{}", std::process::id())))?;
        }
    }
    Ok(())
}

/// Removes the tables that were put aside: no program that is attached uses them any more.
pub fn drop_calls_aside(pins: &Path) -> io::Result<()> {
    for name in entries(pins).iter().filter(|name| name.contains(ASIDE)) {
        fs::remove_file(pins.join(name))?;
    }
    Ok(())
}

/// Forgets the maps, so that the next load makes new ones.
pub fn remove_maps(pins: &Path) -> io::Result<()> {
    for name in entries(pins).iter().filter(|name| *name != LINKS) {
        fs::remove_file(pins.join(name))?;
    }
    Ok(())
}
