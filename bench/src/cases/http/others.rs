//! CPU time of processes that have nothing to do with a measurement: what the machine does besides is no subject's cost.
//!
//! Kernel threads count as the subject's: they serve its packets. Work that the kernel does in interrupts for others is not told apart.

use anyhow::{Context, Result};
use std::{collections::BTreeSet, fs};

/// Where the others stood.
pub struct Others {
    own: BTreeSet<i32>,
    before: u64,
}

impl Others {
    /// Everybody but `own` and this process.
    pub fn now(own: &[i32]) -> Result<Others> {
        let own: BTreeSet<i32> = own.iter().copied().chain([std::process::id() as i32]).collect();
        Ok(Others { before: ticks(&own)?, own })
    }

    /// Seconds since then. A process that ended is in the sum of the parent that waited for it, with all its time, and was in the sum of then
    /// with what it had: the difference is right. Who was not waited for is missed.
    pub fn since(&self) -> Result<f64> {
        // SAFETY: no pointers.
        let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        Ok(ticks(&self.own)?.saturating_sub(self.before) as f64 / per_second as f64)
    }
}

fn ticks(own: &BTreeSet<i32>) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir("/proc").context("cannot read /proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if let Ok(text) = fs::read_to_string(format!("/proc/{pid}/stat"))
            && let Some((parent, ticks)) = row(&text)
            // wrk is our child, kernel threads are kthreadd's.
            && !own.contains(&pid)
            && !own.contains(&parent)
            && pid != 2
            && parent != 2
        {
            sum += ticks;
        }
    }
    Ok(sum)
}

/// Parent and CPU time (own and of waited-for children) of a line of `/proc/PID/stat` (proc(5)).
fn row(text: &str) -> Option<(i32, u64)> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11..15)?.iter().map(|field| field.parse::<u64>().ok()).sum::<Option<u64>>()?;
    Some((fields.get(1)?.parse().ok()?, ticks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_is_read() {
        let line = "17 (odd ) name) S 3 17 17 0 -1 4194304 1 2 3 4 10 20 30 40 20 0 1 0 5 6 7\n";
        assert_eq!(row(line), Some((3, 100)));
        assert_eq!(row("17 (x) S 3"), None);
    }
}
