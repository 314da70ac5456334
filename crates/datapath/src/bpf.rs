//! Raw bpf(2) for what aya does not offer: batches on maps (Linux 5.6; arrays and tries 5.13), and flags on updates.
//!
//! A batch of a thousand entries costs one system call, so that 40,000 services load in milliseconds.

use super::{
    marks::Marks,
    plain::{bytes_of, read},
    tables::{Cursor, Table, TableError, Tables},
};
use std::{
    collections::BTreeMap,
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    sync::{Arc, OnceLock},
};

const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const OBJ_GET: libc::c_long = 7;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const PROG_QUERY: libc::c_long = 16;
const LINK_CREATE: libc::c_long = 28;
const LINK_DETACH: libc::c_long = 34;
const LOOKUP_BATCH: libc::c_long = 24;
const UPDATE_BATCH: libc::c_long = 26;
const DELETE_BATCH: libc::c_long = 27;
const BPF_ANY: u64 = 0;
const BPF_EXIST: u64 = 2;
/// Room for the token of any batch: a u32 for hashes, a key for the others.
const TOKEN: usize = 64;

#[repr(C)]
#[derive(Default)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct Element {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<()> {
    // SAFETY: `attributes` is the command's part of union bpf_attr, and as long as said; its pointers are those of slices that the
    // caller borrows for the call and whose lengths it has checked against the map's sizes.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes as *mut T, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[repr(C)]
#[derive(Default)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Opens a pin.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut object = Object { path: path.as_ptr() as u64, ..Object::default() };
    // SAFETY: as in `bpf`; the path is a C string that lives until the end.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET, &mut object as *mut Object, size_of::<Object>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Where a program can hang on an interface by TCX.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(super) enum Tcx {
    Ingress = 46,
    Egress = 47,
}

#[repr(C)]
#[derive(Default)]
struct Query {
    ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    pad: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

/// Ids of the programs that an interface of this network namespace runs by TCX, in order. At most 64 are told, which is as many as there can be.
pub(super) fn programs_on(ifindex: u32, at: Tcx) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; 64];
    let (programs, count) = (ids.as_mut_ptr() as u64, ids.len() as u32);
    let mut query = Query { ifindex, attach_type: at as u32, programs, count, ..Query::default() };
    bpf(PROG_QUERY, &mut query)?;
    Ok(ids[..ids.len().min(query.count as usize)].to_vec())
}

#[repr(C)]
#[derive(Default)]
struct InfoOf {
    fd: u32,
    length: u32,
    info: u64,
}

/// Program of a link, and the interface that it hangs on (0: none any more); for links of XDP and TCX.
pub(super) fn link_target(link: &OwnedFd) -> io::Result<(u32, u32)> {
    // struct bpf_link_info: type, id, prog_id, and behind a gap what depends on the type, beginning with the interface.
    let mut info = [0u32; 32];
    let (fd, length) = (link.as_raw_fd() as u32, size_of_val(&info) as u32);
    bpf(OBJ_GET_INFO_BY_FD, &mut InfoOf { fd, length, info: info.as_mut_ptr() as u64 })?;
    Ok((info[2], info[4]))
}

/// Entry 0 of an array whose values are `value_size` bytes long.
pub(super) fn first_value(map: &OwnedFd, value_size: usize) -> io::Result<Vec<u8>> {
    let (key, mut value) = ([0u32], vec![0u8; value_size]);
    let mut element =
        Element { map_fd: map.as_raw_fd() as u32, key: key.as_ptr() as u64, value: value.as_mut_ptr() as u64, ..Element::default() };
    bpf(MAP_LOOKUP_ELEM, &mut element)?;
    Ok(value)
}

/// Detaches a link now, whoever else holds it (Linux 5.9). Removing the last pin alone does so some time later.
pub(super) fn detach_link(link: &OwnedFd) -> io::Result<()> {
    bpf(LINK_DETACH, &mut link.as_raw_fd())
}

#[repr(C)]
#[derive(Default)]
struct Program {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    ifindex: u32,
    attach: u32,
    flags: u32,
}

/// Whether the kernel has TCX links (Linux 6.6, and what was carried back from there): asked by a link to an interface that cannot be. One that
/// knows TCX looks for the interface, one that does not know it refuses the kind of link.
pub(super) fn has_tcx() -> io::Result<bool> {
    const SCHED_CLS: u32 = 3;
    const TCX_INGRESS: u32 = 46;
    // r0 = 0; exit
    let code: [u64; 2] = [0xb7, 0x95];
    let mut program =
        Program { kind: SCHED_CLS, instructions: 2, code: code.as_ptr() as u64, license: c"GPL".as_ptr() as u64, ..Program::default() };
    // SAFETY: as in `bpf`; code and license live until the end.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &mut program as *mut Program, size_of::<Program>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let mut link = LinkCreate { program: fd.as_raw_fd() as u32, ifindex: i32::MAX as u32, attach: TCX_INGRESS, flags: 0 };
    match bpf(LINK_CREATE, &mut link).map_err(|error| (error.raw_os_error(), error)) {
        Err((Some(libc::ENODEV), _)) => Ok(true),
        Err((Some(libc::EINVAL), _)) => Ok(false),
        Err((_, error)) => Err(error),
        Ok(()) => Err(io::Error::other("the kernel made a link to no interface")),
    }
}

/// One open map.
#[derive(Debug)]
struct Map {
    fd: OwnedFd,
    limit: u32,
}

/// The kernel's maps. A clone is another handle to the same ones, for a reader on another thread.
#[derive(Clone, Debug)]
pub struct Kernel {
    maps: Arc<BTreeMap<Table, Map>>,
    /// Mapped by the first look; `None`: the kernel did not.
    marks: Arc<OnceLock<Option<Marks>>>,
    cpus: usize,
}

impl Kernel {
    /// Takes over descriptors with their `max_entries`; every table must be there.
    pub(super) fn new(maps: impl IntoIterator<Item = (Table, OwnedFd, u32)>, cpus: usize) -> Self {
        Self {
            maps: Arc::new(maps.into_iter().map(|(table, fd, limit)| (table, Map { fd, limit })).collect()),
            marks: Arc::default(),
            cpus,
        }
    }

    fn fd(&self, table: Table) -> io::Result<u32> {
        let map = self.maps.get(&table).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "not in the kernel object"))?;
        Ok(map.fd.as_raw_fd() as u32)
    }

    /// Without them every version is read at every look.
    fn marks(&self) -> Option<&Marks> {
        let open = || {
            let map = self.maps.get(&Table::Moved)?;
            Marks::open(map.fd.as_fd(), map.limit as usize)
                .inspect_err(|error| tracing::warn!(%error, "the map MOVED cannot be mapped; rollouts cost more"))
                .ok()
        };
        self.marks.get_or_init(open).as_ref()
    }

    fn error(&self, table: Table, action: &'static str, source: io::Error) -> TableError {
        match source.raw_os_error() {
            Some(libc::E2BIG | libc::ENOSPC) => TableError::Full { table, limit: self.limit(table), hint: "" },
            _ => TableError::Refused { table, action, cause: source },
        }
    }

    fn batch_put(&self, table: Table, keys: &[u8], values: &[u8]) -> io::Result<()> {
        let count = keys.len() / table.key_size();
        assert_eq!(values.len(), count * self.value_size(table), "{table}: keys and values differ in number");
        let mut done = 0;
        while done < count {
            let mut batch = Batch {
                keys: keys[done * table.key_size()..].as_ptr() as u64,
                values: values[done * self.value_size(table)..].as_ptr() as u64,
                count: (count - done) as u32,
                map_fd: self.fd(table)?,
                elem_flags: BPF_ANY,
                ..Batch::default()
            };
            match bpf(UPDATE_BATCH, &mut batch) {
                Ok(()) if batch.count > 0 => done += batch.count as usize,
                Ok(()) => return Err(io::Error::other("the kernel took no entry")),
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => done += batch.count as usize,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn batch_delete(&self, table: Table, keys: &[u8]) -> io::Result<()> {
        let count = keys.len() / table.key_size();
        let mut done = 0;
        while done < count {
            let mut batch = Batch {
                keys: keys[done * table.key_size()..].as_ptr() as u64,
                count: (count - done) as u32,
                map_fd: self.fd(table)?,
                ..Batch::default()
            };
            match bpf(DELETE_BATCH, &mut batch) {
                Ok(()) => return Ok(()),
                // The kernel stops at a key that is not there: go on behind it.
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => done += batch.count as usize + 1,
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => done += batch.count as usize,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// A batch of lookups after `from`, of as many entries as there is room for.
    fn lookup(
        &self,
        table: Table,
        from: Option<&impl AsRef<[u8]>>,
        token: &mut [u64; TOKEN / 8],
        keys: &mut [u8],
        values: &mut [u8],
    ) -> io::Result<Batch> {
        let count = keys.len() / table.key_size();
        assert_eq!(values.len(), count * self.value_size(table), "{table}: keys and values differ in number");
        Ok(Batch {
            in_batch: from.map_or(0, |from| from.as_ref().as_ptr() as u64),
            out_batch: token.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: count as u32,
            map_fd: self.fd(table)?,
            ..Batch::default()
        })
    }

    fn batch_scan(&self, table: Table, cursor: &mut Cursor, limit: usize, keys: &mut Vec<u8>, values: &mut Vec<u8>) -> io::Result<bool> {
        let mut limit = limit.min(self.limit(table) as usize).max(1);
        loop {
            keys.resize(limit * table.key_size(), 0);
            values.resize(limit * self.value_size(table), 0);
            let mut token = [0u64; TOKEN / 8];
            let mut batch = self.lookup(table, cursor.started.then_some(&cursor.token), &mut token, keys, values)?;
            let more = match bpf(LOOKUP_BATCH, &mut batch) {
                Ok(()) => true,
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => false,
                // One bucket of the hash holds more than there is room for.
                Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && limit < 1 << 20 => {
                    limit *= 2;
                    continue;
                }
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => continue,
                Err(e) => return Err(e),
            };
            keys.truncate(batch.count as usize * table.key_size());
            values.truncate(batch.count as usize * self.value_size(table));
            cursor.started = true;
            cursor.token = bytes_of(&token).to_vec();
            return Ok(more);
        }
    }

    fn batch_range(&self, table: Table, first: u32, values: &mut [u8]) -> io::Result<()> {
        let count = values.len() / self.value_size(table);
        assert!(table.is_array() && values.len() == count * self.value_size(table), "{table}");
        // The token of an array is the last index that was read.
        let (before, mut token, mut keys) = (first.wrapping_sub(1).to_ne_bytes(), [0u64; TOKEN / 8], vec![0; count * table.key_size()]);
        loop {
            let mut batch = self.lookup(table, (first > 0).then_some(&before), &mut token, &mut keys, values)?;
            match bpf(LOOKUP_BATCH, &mut batch) {
                Ok(()) if batch.count as usize == count => return Ok(()),
                Ok(()) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => continue,
                Err(e) => return Err(e),
            }
        }
    }

    fn element(&self, command: libc::c_long, table: Table, key: &[u8], value: *mut u8, flags: u64) -> io::Result<bool> {
        assert_eq!(key.len(), table.key_size(), "{table}");
        let mut element = Element { map_fd: self.fd(table)?, pad: 0, key: key.as_ptr() as u64, value: value as u64, flags };
        match bpf(command, &mut element) {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

impl Tables for Kernel {
    fn put(&mut self, table: Table, keys: &[u8], values: &[u8]) -> Result<(), TableError> {
        let single = keys.len() == table.key_size();
        let result = if single {
            assert_eq!(values.len(), self.value_size(table), "{table}");
            self.element(MAP_UPDATE_ELEM, table, keys, values.as_ptr().cast_mut(), BPF_ANY).map(|_| ())
        } else {
            self.batch_put(table, keys, values)
        };
        // Who has not looked yet reads all.
        if let (Table::Counters, Some(Some(marks))) = (table, self.marks.get()) {
            keys.chunks_exact(table.key_size()).for_each(|key| marks.set(read(key)));
        }
        result.map_err(|e| self.error(table, "write to", e))
    }

    fn replace(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<bool, TableError> {
        assert_eq!(value.len(), self.value_size(table), "{table}");
        self.element(MAP_UPDATE_ELEM, table, key, value.as_ptr().cast_mut(), BPF_EXIST).map_err(|e| self.error(table, "write to", e))
    }

    fn delete(&mut self, table: Table, keys: &[u8]) -> Result<(), TableError> {
        self.batch_delete(table, keys).map_err(|e| self.error(table, "delete from", e))
    }

    fn get(&self, table: Table, key: &[u8], value: &mut [u8]) -> Result<bool, TableError> {
        assert_eq!(value.len(), self.value_size(table), "{table}");
        self.element(MAP_LOOKUP_ELEM, table, key, value.as_mut_ptr(), 0).map_err(|e| self.error(table, "read", e))
    }

    fn scan(&self, table: Table, cursor: &mut Cursor, limit: usize, keys: &mut Vec<u8>, values: &mut Vec<u8>) -> Result<bool, TableError> {
        self.batch_scan(table, cursor, limit, keys, values).map_err(|e| self.error(table, "read", e))
    }

    fn range(&self, table: Table, first: u32, values: &mut [u8]) -> Result<(), TableError> {
        self.batch_range(table, first, values).map_err(|e| self.error(table, "read", e))
    }

    fn take_marks(&self, first: u32, marked: &mut [bool]) {
        match self.marks() {
            Some(marks) => marks.take(first, marked),
            None => marked.fill(true),
        }
    }

    fn limit(&self, table: Table) -> u32 {
        self.maps.get(&table).map_or(0, |map| map.limit)
    }

    fn cpus(&self) -> usize {
        self.cpus
    }

    fn memory(&self, table: Table) -> u64 {
        let Some(map) = self.maps.get(&table) else { return 0 };
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd.as_raw_fd())).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok()).unwrap_or(0)
    }
}
