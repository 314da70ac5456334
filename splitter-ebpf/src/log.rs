//! Free-text diagnostics, for `splitter agent --debug-programs`: a line for each packet that was not usual, by aya-log. Written when the packet's last
//! program ends, where the stack has room. Unless [`DEBUG_PROGRAMS`] is set, verifiers remove all of it: the variable is read-only when they look.
//!
//! A line begins with the number of the program ([`number`]), a bar behind it; the agent puts the name there. Services and backends are numbers of the
//! tables; `reason N` at the end of a line is a `Reason`, which the agent names.

use crate::maps::NOTES;
use aya_ebpf::Global;
use aya_log_ebpf::debug;
use splitter_common::decide::salt;
use splitter_ebpf::env::Note;

/// Set by the agent before it loads the programs.
#[unsafe(no_mangle)]
static DEBUG_PROGRAMS: Global<u32> = Global::new(0);

/// Stands for a program's name.
pub const fn number(name: &str) -> u32 {
    salt(name.as_bytes()) as u32
}

#[inline(always)]
pub fn on() -> bool {
    DEBUG_PROGRAMS.load() != 0
}

#[inline(never)]
pub fn note(what: u32, service: u32, detail: u32) -> u32 {
    let Some(note) = NOTES.get_ptr_mut(0) else { return 0 };
    // SAFETY: a live map value of this CPU.
    unsafe { *note = [what, service, detail] };
    0
}

/// Tells what was noted, if anything was.
#[inline(always)]
pub fn tell(program: u32) {
    if on() {
        write(program);
    }
}

macro_rules! lines {
    ($program:ident, $noted:ident, $($what:ident => $text:literal $($value:ident)*,)*) => {
        $(if $noted == Note::$what as u32 {
            debug!((), $text, $program $(, $value)*);
        })*
    };
}

#[inline(never)]
fn write(program: u32) -> u32 {
    let Some(note) = NOTES.get_ptr_mut(0) else { return 0 };
    // SAFETY: as in `note`.
    let [noted, service, detail] = unsafe { note.replace([0; 3]) };
    lines! { program, noted,
        Given => "{}|service {}: a connection was given to backend {}" service detail,
        TakenUp => "{}|service {}: a connection was taken up in the middle, by backend {}" service detail,
        Unserved => "{}|service {}: nobody serves, reason {}" service detail,
        Kept => "{}|service {}: a request stays at backend {}" service detail,
        Sent => "{}|service {}: a request goes to backend {}" service detail,
        Pinned => "{}|service {}: a connection stays with its leg, reason {}" service detail,
        Answered => "{}|service {}: the node answers itself, status {}" service detail,
        Responded => "{}|service {}: a response came, status {}" service detail,
        Icmp => "{}|an ICMP error was translated, type and code {}" detail,
    }
    1
}
