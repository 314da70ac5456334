//! Helpers of the kernel that programs call, and the Linux that first had each: what decides on how old a kernel the object can load.
//!
//! Versions: docs/kernel-versions.md of bcc; `skb_change_head` for TC by commit 6f3f65d80dac.

/// The oldest kernel that is booted (docs/kernels.md).
const OLDEST: (u32, u32) = (6, 1);

/// Number (`enum bpf_func_id`), name, kernel.
const KNOWN: &[(u32, &str, (u32, u32))] = &[
    (1, "map_lookup_elem", (3, 19)),
    (2, "map_update_elem", (3, 19)),
    (3, "map_delete_elem", (3, 19)),
    (5, "ktime_get_ns", (4, 1)),
    (6, "trace_printk", (4, 1)),
    (7, "get_prandom_u32", (4, 1)),
    (8, "get_smp_processor_id", (4, 1)),
    (9, "skb_store_bytes", (4, 1)),
    (11, "l4_csum_replace", (4, 1)),
    (12, "tail_call", (4, 2)),
    (13, "clone_redirect", (4, 2)),
    (23, "redirect", (4, 4)),
    (26, "skb_load_bytes", (4, 5)),
    (28, "csum_diff", (4, 6)),
    (38, "skb_change_tail", (4, 9)),
    (39, "skb_pull_data", (4, 9)),
    (40, "csum_update", (4, 9)),
    (43, "skb_change_head", (5, 8)),
    (44, "xdp_adjust_head", (4, 10)),
    (50, "skb_adjust_room", (4, 13)),
    (65, "xdp_adjust_tail", (4, 18)),
    (69, "fib_lookup", (4, 18)),
    (113, "probe_read_kernel", (5, 5)),
    (118, "jiffies64", (5, 5)),
    (125, "ktime_get_boot_ns", (5, 8)),
    (130, "ringbuf_output", (5, 8)),
    (131, "ringbuf_reserve", (5, 8)),
    (132, "ringbuf_submit", (5, 8)),
    (133, "ringbuf_discard", (5, 8)),
    (134, "ringbuf_query", (5, 8)),
    (135, "csum_level", (5, 8)),
    (152, "redirect_neigh", (5, 10)),
    (155, "redirect_peer", (5, 10)),
    (181, "loop", (5, 17)),
];

/// Why an object may not call a helper.
pub fn complaint(number: u32) -> Option<String> {
    let Some((_, name, kernel)) = KNOWN.iter().find(|(known, ..)| *known == number) else {
        return Some(format!("helper {number} is called, and xtask/src/object/helpers.rs does not say which Linux first had it"));
    };
    let ((major, minor), (oldest, of)) = (*kernel, OLDEST);
    (*kernel > OLDEST).then(|| format!("bpf_{name} is called: Linux {major}.{minor} first had it, and {oldest}.{of} must load the object"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helpers_of_newer_kernels_and_unknown_ones_are_refused() {
        assert_eq!(complaint(181), None);
        assert!(complaint(9_999).unwrap().contains("does not say"));
        assert!(KNOWN.iter().all(|(_, _, kernel)| *kernel <= OLDEST), "a helper that 6.1 lacks");
    }
}
