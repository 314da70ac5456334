//! Loading the kernel object: sizes of the maps, adopting pinned ones, programs, tail calls, the clock.

use super::{
    DatapathError,
    adopt::{self, Adoption},
    bpf::Kernel,
    diagnostics, object,
    objects::SPLITTER,
    pins, plain, refusal,
    tables::{CONFIG, Cursor, SCAN, Table, Tables},
};
use aya::{
    Ebpf, EbpfLoader, TestRun, TestRunOptions,
    maps::{MapData, ProgramArray},
    programs::{Program, ProgramError, ProgramFd, SchedClassifier, Xdp},
};
use splitter_common::abi::*;
use std::{
    io::Read,
    iter,
    mem::offset_of,
    os::fd::AsFd,
    path::Path,
    sync::{Mutex, PoisonError},
};

pub const TC: &str = "splitter_tc";
/// Attached on egress when the object has it.
pub const TC_EGRESS: &str = "splitter_out";
pub const XDP: &str = "splitter_xdp";
const CLOCK: &str = "splitter_clock";
/// Programs that are verified at the same time, at most.
const LOADERS: usize = 4;
/// How large maps are made when there are none yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// TCP flows of each family.
    pub max_flows: u32,
    /// That the policy has now; the maps hold at least twice as many.
    pub versions: u32,
    pub backends: u32,
    /// The programs tell what they do.
    pub diagnostics: bool,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { max_flows: 131_072, versions: 0, backends: 0, diagnostics: false }
    }
}

/// Bytes of the smallest ring, whatever the page size.
const SMALLEST: u32 = 64 << 10;

/// Kernel memory that the counters may take unless the policy needs more, bytes.
const COUNTERS_MEMORY: usize = 64 << 20;

impl Sizes {
    /// Entries of a map; `None`: as the object says.
    fn entries(&self, table: Table, cpus: usize) -> Option<u32> {
        // Two entries a flow: one a direction.
        let flows = self.max_flows.saturating_mul(2);
        Some(match table {
            Table::Tcp4 | Table::Tcp6 => flows,
            Table::Udp4 | Table::Udp6 => flows / 2,
            Table::Half4 | Table::Half6 | Table::Closing4 | Table::Closing6 => 131_072,
            Table::Spliced4 | Table::Spliced6 => self.max_flows,
            // A connection that has been to several versions has as many.
            Table::Legs4 | Table::Legs6 => flows,
            Table::Snat4 | Table::Snat6 | Table::Claims4 | Table::Claims6 => 65_536,
            Table::Fragments4 | Table::Fragments6 => 8_192,
            Table::Backends => self.backends.saturating_mul(2).clamp(16_384, MAX_BACKENDS).next_power_of_two(),
            Table::Counters | Table::Moved => {
                let fitting = (COUNTERS_MEMORY / (size_of::<VersionCounters>() * cpus.max(1))) as u32;
                fitting.clamp(4_096, 131_072).max(self.versions.saturating_mul(2).next_power_of_two())
            }
            _ => return None,
        })
    }
}

/// Programs and maps in the kernel.
pub struct Loaded {
    pub ebpf: Ebpf,
    pub kernel: Kernel,
    /// The maps were there already.
    pub adopted: bool,
    pub adoption: Adoption,
}

/// What an earlier agent left in its `CONFIG`, of whatever layout.
#[derive(Clone, Copy, Debug)]
struct Earlier {
    secret: [u64; 2],
    cookies: [[u64; 2]; 2],
}

/// Loads the object. Maps that are pinned are taken over with their sizes, the others are made; beside those whose layouts differ, as [`Adoption`] says.
pub fn load(pins: &Path, sizes: Sizes, config: Config) -> Result<Loaded, DatapathError> {
    pins::create(pins)?;
    let earlier = earlier(pins)?;
    let adoption = if earlier.is_some() {
        adopt::judge(pins).map_err(|differ| DatapathError::layouts(pins, &differ))?
    } else {
        Adoption::of_nothing(&adopt::pinned(pins), layouts())
    };
    let failed = |cause| DatapathError::Pins { path: pins.into(), cause };
    adopt::drop_next(pins).map_err(failed)?;
    let cpus = aya::util::nr_cpus().map_err(|(_, source)| DatapathError::Cpus(source))?;
    let mut loader = EbpfLoader::new();
    // The object needs nothing of the kernel's types.
    loader.btf(None).default_map_pin_directory(pins);
    for layout in layouts() {
        loader.map_pin_path(layout.name, pins.join(adoption.file(layout.name)));
        let wanted = Table::ALL.iter().find(|table| table.name() == layout.name).and_then(|table| sizes.entries(*table, cpus));
        if let Some(entries) = adoption.entries(layout, wanted) {
            loader.map_max_entries(layout.name, entries);
        }
    }
    let speaks = u32::from(sizes.diagnostics);
    loader.override_global("DEBUG_PROGRAMS", &speaks, true);
    if !sizes.diagnostics {
        // Nothing is written there; a map cannot be smaller.
        loader.map_max_entries(diagnostics::RING, SMALLEST);
    }
    // Programs of another load have scratch memory of their own: an attached one must not call them.
    pins::set_calls_aside(pins).map_err(failed)?;
    let mut ebpf = loader.load(SPLITTER).map_err(|e| {
        let cause = refusal::of_object(&e, &object::definitions(SPLITTER));
        DatapathError::Load { release: refusal::release(), cause }
    })?;
    let mut kernel = open_maps(pins, Table::ALL.iter().map(|table| (*table, adoption.file(table.name()))), cpus)?;
    load_programs(&mut ebpf)?;
    copy(pins, &adoption, &mut kernel)?;
    let mut config = Config { max_flows: kernel.limit(Table::Tcp4) / 2, ..config };
    if let Some(old) = earlier {
        // Handshakes under way hold numbers made with it.
        (config.secret, config.cookies) = (old.secret, old.cookies);
    }
    CONFIG.put_one(&mut kernel, 0, config)?;
    leave(SPLITTER);
    Ok(Loaded { ebpf, kernel, adopted: earlier.is_some(), adoption })
}

/// Bytes of values that are copied at once, about.
const COPIED: usize = 4 << 20;

/// Fills maps that are made anew only because others are: with what they held, so that what runs is known, and who left the policy finishes.
fn copy(pins: &Path, adoption: &Adoption, kernel: &mut Kernel) -> Result<(), DatapathError> {
    let tables = || Table::ALL.iter().copied().filter(|table| *table != Table::Config && adoption.copies(table.name()));
    let files = tables().map(|table| (table, adopt::own_name(table.name())));
    let old = open_maps(pins, files, kernel.cpus())?;
    for table in tables() {
        let (mut cursor, mut keys, mut values, mut more) = (Cursor::default(), Vec::new(), Vec::new(), true);
        let limit = (COPIED / old.value_size(table)).clamp(1, SCAN);
        while more {
            more = old.scan(table, &mut cursor, limit, &mut keys, &mut values)?;
            if !keys.is_empty() {
                kernel.put(table, &keys, &values)?;
            }
        }
    }
    Ok(())
}

/// Lets go of the pages of what was read and is not needed any more: megabytes that are the program file's, and would come back from there.
fn leave(bytes: &'static [u8]) {
    // SAFETY: no pointers.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    let (begin, end) = (bytes.as_ptr() as usize, bytes.as_ptr() as usize + bytes.len());
    let (first, last) = (begin.next_multiple_of(page), end / page * page);
    if first < last {
        // SAFETY: whole pages of the static, which nothing writes: a later read finds the same bytes in the file. Failing costs memory only.
        unsafe { libc::madvise(first as *mut libc::c_void, last - first, libc::MADV_DONTNEED) };
    }
}

/// A new key for names and sequence numbers.
pub fn secret() -> Result<[u64; 2], DatapathError> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0; 16];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(|cause| DatapathError::Pins { path: path.into(), cause })?;
    let (first, second) = bytes.split_at(8);
    let word = |half: &[u8]| half.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
    Ok([word(first), word(second)])
}

/// Whether there are maps to adopt, of whatever layout.
pub fn has_maps(pins: &Path) -> bool {
    !adopt::pins_of(pins, Table::Config.name()).is_empty()
}

/// What maps that are to be adopted say of themselves; an error when they are of before maps had layouts of their own.
fn earlier(pins: &Path) -> Result<Option<Earlier>, DatapathError> {
    // Where a `CONFIG` has its name already, it counts.
    let Some(path) = adopt::pins_of(pins, Table::Config.name()).into_iter().next() else { return Ok(None) };
    let map = open(&path)?;
    let info = map.info().map_err(|e| DatapathError::map(&path, e))?;
    let failed = |cause| DatapathError::Pins { path: path.clone(), cause };
    let fd = map.fd().as_fd().try_clone_to_owned().map_err(failed)?;
    let bytes = super::bpf::first_value(&fd, info.value_size() as usize).map_err(failed)?;
    let (version, secret, cookies) = (0, offset_of!(Config, secret), offset_of!(Config, cookies));
    let Some(bytes) = bytes.get(..cookies + size_of::<[[u64; 2]; 2]>()) else { return Err(DatapathError::abi(pins, 0)) };
    match plain::read::<u32>(&bytes[version..]) {
        // An agent was stopped before it finished making the maps.
        0 => Ok(None),
        old if old < FIRST_ABI_VERSION => Err(DatapathError::abi(pins, old)),
        _ => {
            let key = |at: usize| plain::read::<[u64; 2]>(&bytes[at..]);
            Ok(Some(Earlier { secret: key(secret), cookies: [key(cookies), key(cookies + 16)] }))
        }
    }
}

/// The maps in `pins` without their programs, as far as this program knows their layouts; `None` when there are none, or it does not know one of `needed`.
///
/// # Errors
/// When they cannot be opened.
pub(super) fn open_tables(pins: &Path, needed: &[Table]) -> Result<Option<Kernel>, DatapathError> {
    match earlier(pins) {
        Ok(Some(_)) => {}
        Ok(None) | Err(DatapathError::Abi { .. }) => return Ok(None),
        Err(error) => return Err(error),
    }
    let known = adopt::known(pins);
    let tables: Vec<_> = Table::ALL.iter().copied().filter(|table| known.contains(table.name())).collect();
    if needed.iter().any(|table| !tables.contains(table)) {
        return Ok(None);
    }
    let cpus = aya::util::nr_cpus().map_err(|(_, source)| DatapathError::Cpus(source))?;
    open_maps(pins, tables.into_iter().map(|table| (table, adopt::own_name(table.name()))), cpus).map(Some)
}

fn open(path: &Path) -> Result<MapData, DatapathError> {
    MapData::from_pin(path).map_err(|e| DatapathError::map(path, e))
}

/// Opens maps by the names of their pins.
fn open_maps(pins: &Path, files: impl Iterator<Item = (Table, impl AsRef<Path>)>, cpus: usize) -> Result<Kernel, DatapathError> {
    let one = |(table, file): (Table, _)| {
        let path = pins.join(file);
        let map = open(&path)?;
        let entries = map.info().map_err(|e| DatapathError::map(&path, e))?.max_entries();
        let fd = map.fd().as_fd().try_clone_to_owned().map_err(|cause| DatapathError::Pins { path, cause })?;
        Ok((table, fd, entries))
    };
    Ok(Kernel::new(files.map(one).collect::<Result<Vec<_>, DatapathError>>()?, cpus))
}

fn load_programs(ebpf: &mut Ebpf) -> Result<(), DatapathError> {
    verify_programs(ebpf)?;
    for call in CALLS {
        let fd = program_fd(ebpf, call.program)?;
        let Some(map) = ebpf.map_mut(call.map) else { continue };
        let set = ProgramArray::try_from(map).and_then(|mut calls| calls.set(call.slot, &fd, 0));
        set.map_err(|e| DatapathError::map(Path::new(call.program), e))?;
    }
    Ok(())
}

/// Hands all programs to the kernel. The verifier takes a tenth of a second for one, and checks several at the same time.
fn verify_programs(ebpf: &mut Ebpf) -> Result<(), DatapathError> {
    let threads = loaders();
    let left = Mutex::new(ebpf.programs_mut());
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    std::thread::scope(|scope| {
        let loaders: Vec<_> = (0..threads).map(|_| scope.spawn(|| iter::from_fn(next).try_for_each(load_program))).collect();
        loaders.into_iter().try_for_each(|loader| match loader.join() {
            Ok(loaded) => loaded,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

/// How many programs are verified at the same time.
pub(super) fn loaders() -> usize {
    std::thread::available_parallelism().map_or(1, |cpus| cpus.get().min(LOADERS))
}

/// Hands one program to the kernel.
pub(super) fn verify(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        _ => Ok(()),
    }
}

fn load_program((name, program): (&str, &mut Program)) -> Result<(), DatapathError> {
    let begin = std::time::Instant::now();
    verify(program).map_err(|error| DatapathError::program(name, &error))?;
    tracing::debug!(program = name, ms = begin.elapsed().as_millis() as u64, "loaded");
    Ok(())
}

fn program_fd(ebpf: &Ebpf, name: &'static str) -> Result<ProgramFd, DatapathError> {
    let program = ebpf.program(name).ok_or(DatapathError::NoProgram(name))?;
    let fd = program.fd().and_then(|fd| Ok(fd.try_clone()?));
    fd.map_err(|error| DatapathError::program(name, &error))
}

pub fn classifier<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SchedClassifier, DatapathError> {
    let program = ebpf.program_mut(name).ok_or(DatapathError::NoProgram(name))?;
    program.try_into().map_err(|error| DatapathError::program(name, &error))
}

pub fn xdp<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, DatapathError> {
    let program = ebpf.program_mut(name).ok_or(DatapathError::NoProgram(name))?;
    program.try_into().map_err(|error| DatapathError::program(name, &error))
}

/// The clock of the flow tables, in ticks (jiffies).
pub fn ticks(ebpf: &Ebpf) -> Result<u32, DatapathError> {
    let program = ebpf.program(CLOCK).ok_or(DatapathError::NoProgram(CLOCK))?;
    let failed = |error| DatapathError::program(CLOCK, &error);
    let program: &SchedClassifier = program.try_into().map_err(failed)?;
    // The shortest frame that the kernel takes for a test run.
    let frame = [0u8; 64];
    let run = program.test_run(TestRunOptions { data_in: Some(&frame), repeat: 1, ..Default::default() }).map_err(failed)?;
    Ok(run.return_value)
}

/// Ticks in a second: the resolution of the coarse clock is one tick (clock_getres(2)).
pub fn ticks_per_second() -> u32 {
    let mut resolution = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a struct to write to.
    unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &mut resolution) };
    if resolution.tv_nsec > 0 { (1_000_000_000 + resolution.tv_nsec / 2) as u32 / resolution.tv_nsec as u32 } else { 100 }
}

/// The clock of slots for heads: see [`splitter_common::abi::stash_word::clock`].
pub fn heads_clock() -> u32 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a struct to write to.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    splitter_common::abi::stash_word::clock(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}
