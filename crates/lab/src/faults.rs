//! A link that loses packets, doubles them and lets some arrive late, for kernels without netem: a program at an end's interface, and a way round
//! that interface for what is to be late.
//!
//! The way round is a veth pair beside the interface. What the program sends into it is read from a packet socket, as the kernel would have sent it
//! (with its offloads), and leaves by the interface a while later, past the program. So others overtake it.

use crate::{lab::Namespace, poll::check};
use anyhow::{Context, Result};
use aya::{
    Ebpf,
    maps::{Array, PerCpuArray},
    programs::{SchedClassifier, TcAttachType},
};
use std::{
    collections::VecDeque,
    ffi::CStr,
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// The interface of every end of a lab.
const END: &CStr = c"eth0";
/// The two ends of the way round.
const INTO: &CStr = c"late0";
const OUT_OF: &CStr = c"late1";

/// Of a thousand packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    pub lost: u32,
    pub doubled: u32,
    /// Leave [`Faults::delay`] later than they would.
    pub late: u32,
    pub delay: Duration,
}

/// What a faulty link did so far, in packets (of up to 64 KB where there are offloads).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub seen: u64,
    pub lost: u64,
    pub doubled: u64,
    /// Those that have left by now.
    pub late: u64,
}

impl std::ops::Add for Counts {
    type Output = Counts;

    fn add(self, other: Counts) -> Counts {
        Counts {
            seen: self.seen + other.seen,
            lost: self.lost + other.lost,
            doubled: self.doubled + other.doubled,
            late: self.late + other.late,
        }
    }
}

/// The faults of what leaves an end of the network; they end with it.
pub struct FaultyLink {
    ebpf: Ebpf,
    way: Option<Way>,
}

impl FaultyLink {
    /// `object`: the kernel object `faults` of the agent's build.
    ///
    /// # Errors
    /// Without root; when the namespace has such faults already.
    pub fn leaving(namespace: &Namespace, object: &[u8], faults: Faults) -> Result<FaultyLink> {
        let mut ebpf = Ebpf::load(object).context("the object of the faults")?;
        let way = if faults.late > 0 { Some(Way::open(namespace, faults.delay)?) } else { None };
        let mut shares: Array<_, u32> = ebpf.map_mut("FAULTS").context("no FAULTS")?.try_into()?;
        let into = way.as_ref().map_or(0, |way| way.into);
        for (i, value) in (0..).zip([faults.lost, faults.doubled, faults.late, into]) {
            shares.set(i, value, 0)?;
        }
        let program: &mut SchedClassifier = ebpf.program_mut("fault_tc").context("no fault_tc")?.try_into()?;
        program.load()?;
        namespace.run(|| program.attach("eth0", TcAttachType::Egress).map(drop))??;
        Ok(FaultyLink { ebpf, way })
    }

    /// # Panics
    /// When the kernel does not tell.
    pub fn counts(&self) -> Counts {
        let map = self.ebpf.map("LOSSES").expect("its map");
        let counters: PerCpuArray<_, u64> = map.try_into().expect("counters");
        let [seen, lost, doubled] = [0, 1, 2].map(|i| counters.get(&i, 0).expect("in range").iter().sum());
        let late = self.way.as_ref().map_or(0, |way| way.carried.load(Ordering::Relaxed));
        Counts { seen, lost, doubled, late }
    }
}

/// The way round an interface, and the thread that carries packets over it.
struct Way {
    /// Index of the interface that leads into it.
    into: u32,
    /// Packets that have left by the interface.
    carried: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    namespace: Namespace,
}

impl Way {
    fn open(namespace: &Namespace, delay: Duration) -> Result<Way> {
        namespace.batch("link add late0 mtu 65535 type veth peer name late1 mtu 65535\nlink set late0 up\nlink set late1 up\n")?;
        let sockets = || -> io::Result<(u32, OwnedFd, OwnedFd)> {
            Ok((index(INTO)?, packet_socket(OUT_OF, (libc::ETH_P_ALL as u16).to_be())?, packet_socket(END, 0)?))
        };
        let (into, from, to) = namespace.run(sockets)?.context("the way of what is late")?;
        let (carried, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, ours) = (carried.clone(), stop.clone());
        let thread = std::thread::Builder::new().name("late".into()).spawn(move || carry(&from, &to, delay, &counted, &ours))?;
        Ok(Way { into, carried, stop, thread: Some(thread), namespace: namespace.clone() })
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A panic was printed already, and what the namespace's end did not take has no reader left.
        let _ = self.thread.take().map(JoinHandle::join);
        let _ = self.namespace.batch("link del late0\n");
    }
}

/// Takes what comes out of the way round, and lets it go when its time has come. In order, since all wait as long.
fn carry(from: &OwnedFd, to: &OwnedFd, delay: Duration, carried: &AtomicU64, stop: &AtomicBool) {
    /// How often `stop` is looked at.
    const LOOK: Duration = Duration::from_millis(20);
    let mut waiting: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut buffer = vec![0u8; 70_000];
    while !stop.load(Ordering::Relaxed) {
        while let Some(length) = receive(from, &mut buffer) {
            waiting.push_back((Instant::now() + delay, buffer[..length].to_vec()));
        }
        while waiting.front().is_some_and(|(due, _)| *due <= Instant::now()) {
            let Some((_, packet)) = waiting.pop_front() else { break };
            // SAFETY: the packet lives through the call. One that the interface refuses is lost, as elsewhere.
            let sent = unsafe { libc::send(to.as_raw_fd(), packet.as_ptr().cast(), packet.len(), 0) };
            carried.fetch_add(u64::from(sent > 0), Ordering::Relaxed);
        }
        let left = waiting.front().map_or(LOOK, |(due, _)| due.saturating_duration_since(Instant::now()).min(LOOK));
        wait(from, left);
    }
}

/// Until there is something to read, or the time is over.
fn wait(socket: &OwnedFd, time: Duration) {
    let time = libc::timespec { tv_sec: time.as_secs() as libc::time_t, tv_nsec: time.subsec_nanos().into() };
    let mut ready = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: both structures live through the call. An error means that we look again.
    unsafe { libc::ppoll(&mut ready, 1, &raw const time, std::ptr::null()) };
}

/// The next packet with what its offloads need before it; only what the interface itself would have sent.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Option<usize> {
    loop {
        // SAFETY: all zeroes is a valid address.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        let mut size = size_of_val(&address) as libc::socklen_t;
        // SAFETY: buffer and address are as long as said.
        let length = unsafe {
            let (at, address) = (buffer.as_mut_ptr().cast(), (&raw mut address).cast());
            libc::recvfrom(socket.as_raw_fd(), at, buffer.len(), libc::MSG_DONTWAIT, address, &mut size)
        };
        let length = usize::try_from(length).ok()?;
        // The pair's own stack speaks too, to groups.
        if address.sll_pkttype == libc::PACKET_OTHERHOST {
            return Some(length);
        }
    }
}

fn index(name: &CStr) -> io::Result<u32> {
    // SAFETY: a string with its end.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 { Err(io::Error::last_os_error()) } else { Ok(index) }
}

/// Of the calling thread's namespace: whole frames of an interface with virtio's header before them. What is sent goes past queues and programs.
fn packet_socket(interface: &CStr, protocol: u16) -> io::Result<OwnedFd> {
    const BUFFER: i32 = 16 << 20;
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor is new and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let set = |level, option, value: i32| {
        // SAFETY: the value is an int that lives through the call.
        check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const value).cast(), size_of::<i32>() as u32) })
    };
    set(libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
    set(libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1)?;
    set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER)?;
    // SAFETY: all zeroes is a valid address.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = index(interface)? as i32;
    // SAFETY: the address is as long as said.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as libc::socklen_t) })?;
    Ok(fd)
}
