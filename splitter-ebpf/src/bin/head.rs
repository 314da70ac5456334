//! Benchmark and tests only: the head scanner over a text in a map, run by PROG_TEST_RUN. Never attached to an interface.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        macros::{classifier, map},
        maps::{Array, PerCpuArray},
        programs::TcContext,
    };
    use splitter_common::{
        abi::{Addr, HttpRules},
        barrier::{load, opaque},
        http::{
            HEAD_LIMIT, HeadText, Loop, RequestHead, ResponseHead, Scan,
            chunks::{Chunks, WINDOW},
            request, response,
        },
    };
    use splitter_ebpf::packet::http::BpfLoop;

    /// What is read, and what for.
    #[repr(C)]
    pub struct Task {
        client: Addr,
        len: u32,
        /// 1: with the rules.
        ruled: u32,
        /// 1: the response answers HEAD.
        answers_head: u32,
        pad: u32,
    }

    #[map]
    static TASK: Array<Task> = Array::with_max_entries(1, 0);
    #[map]
    static TEXT: Array<HeadText> = Array::with_max_entries(1, 0);
    #[map]
    static RULES: Array<HttpRules> = Array::with_max_entries(1, 0);
    #[map]
    static SCAN: PerCpuArray<Scan> = PerCpuArray::with_max_entries(1, 0);
    #[map]
    static CHUNKS: Array<Chunks> = Array::with_max_entries(1, 0);
    #[map]
    static REQUEST: Array<RequestHead> = Array::with_max_entries(1, 0);
    #[map]
    static RESPONSE: Array<ResponseHead> = Array::with_max_entries(1, 0);

    /// Everything but the scan: subtracted from the others' time.
    #[classifier]
    pub fn head_nothing(_ctx: TcContext) -> i32 {
        let (Some(task), Some(text), Some(scan)) = (TASK.get(0), TEXT.get(0), SCAN.get_ptr_mut(0)) else { return -1 };
        // SAFETY: the value is there, and nobody else uses it on this CPU.
        unsafe { (*scan).clone_from(&Scan::default()) };
        (task.len + text[0] as u32) as i32
    }

    /// Reads every word of the text, 64 bytes a round, as the least that a scan could do.
    #[classifier]
    pub fn head_reference(_ctx: TcContext) -> i32 {
        let (Some(task), Some(text), Some(scan)) = (TASK.get(0), TEXT.get(0), SCAN.get_ptr_mut(0)) else { return -1 };
        // SAFETY: as above.
        unsafe { (*scan).clone_from(&Scan::default()) };
        let (base, len) = (text.as_ptr(), task.len);
        let mut all = 0u64;
        let seen = &mut all;
        BpfLoop::repeat(HEAD_LIMIT / 64, move |i| {
            if i * 64 >= len {
                return true;
            }
            // SAFETY: masked to the text's length, behind which there is room for a window.
            unsafe {
                let at = base.add((opaque(i * 64) & (HEAD_LIMIT - 1)) as usize);
                *seen |= load::<0>(at) | load::<8>(at) | load::<16>(at) | load::<24>(at);
                *seen |= load::<32>(at) | load::<40>(at) | load::<48>(at) | load::<56>(at);
            }
            false
        });
        (all & 1) as i32
    }

    /// Answers with the verdict.
    #[classifier]
    pub fn head_request(_ctx: TcContext) -> i32 {
        let (Some(task), Some(text), Some(scan)) = (TASK.get(0), TEXT.get(0), SCAN.get_ptr_mut(0)) else { return -1 };
        let Some(out) = REQUEST.get_ptr_mut(0) else { return -1 };
        let rules = if task.ruled != 0 { RULES.get(0) } else { None };
        // SAFETY: values that are there; nothing else runs during a test run.
        let (scan, out) = unsafe { (&mut *scan, &mut *out) };
        request::<BpfLoop>(text, task.len, rules, &task.client, scan, out);
        out.verdict as i32
    }

    /// Follows a chunked body through the first bytes of the text; answers how many it read.
    #[classifier]
    pub fn head_chunks(_ctx: TcContext) -> i32 {
        let (Some(task), Some(text), Some(chunks)) = (TASK.get(0), TEXT.get(0), CHUNKS.get_ptr_mut(0)) else { return -1 };
        // SAFETY: as above; the text is longer than a window.
        let (chunks, window) = unsafe { (&mut *chunks, &*text.as_ptr().cast::<[u8; WINDOW as usize]>()) };
        chunks.feed::<BpfLoop>(window, task.len) as i32
    }

    /// Answers with the verdict.
    #[classifier]
    pub fn head_response(_ctx: TcContext) -> i32 {
        let (Some(task), Some(text), Some(scan)) = (TASK.get(0), TEXT.get(0), SCAN.get_ptr_mut(0)) else { return -1 };
        let Some(out) = RESPONSE.get_ptr_mut(0) else { return -1 };
        // SAFETY: as above.
        let (scan, out) = unsafe { (&mut *scan, &mut *out) };
        response::<BpfLoop>(text, task.len, task.answers_head != 0, scan, out);
        out.verdict as i32
    }

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo) -> ! {
        loop {}
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
