//! What this kernel takes, by trying it: loads every program over maps made for the trial, attaches nothing to any interface that is there,
//! and leaves nothing behind. An agent that lives is not touched.

use super::{
    bpf, clsact, load, object,
    objects::SPLITTER,
    refusal::{self, Refusal},
};
use aya::{
    Ebpf, EbpfLoader,
    programs::{Program, ProgramError},
};
use std::{io, iter, sync::Mutex, sync::PoisonError, thread};

/// What became of a trial.
#[derive(Clone, Debug)]
pub struct Trial {
    /// `uname -r`.
    pub release: String,
    /// Every program, by name; or why none could be tried.
    pub programs: Result<Vec<Tried>, String>,
    pub attach: Attach,
}

/// A program that was handed to the kernel.
#[derive(Clone, Debug)]
pub struct Tried {
    pub name: String,
    /// Instructions that the verifier walked through; `None` where the kernel does not tell (before 5.16), and for refused ones.
    pub verified_instructions: Option<u32>,
    pub refusal: Option<Refusal>,
}

/// How programs get to packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attach {
    /// By links of TCX.
    Tcx,
    /// By filters of clsact, which were tried in a network namespace made for that.
    Clsact,
    /// There is no TCX, and clsact does not work.
    Neither(String),
    /// Could not be tried.
    Unknown(String),
}

/// Tries the node's programs. Takes a second or two on two CPUs, 20 MB of kernel memory meanwhile, and no network.
pub fn run() -> Trial {
    run_object(SPLITTER)
}

/// The same with any object of the kind.
pub fn run_object(bytes: &[u8]) -> Trial {
    let release = refusal::release();
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    let mut ebpf = match loader.load(&object::for_trial(bytes)) {
        Ok(ebpf) => ebpf,
        Err(error) => {
            let cause = refusal::of_object(&error, &object::definitions(bytes));
            return Trial { release, programs: Err(cause.clone()), attach: attach(None, cause) };
        }
    };
    let programs = load_all(&mut ebpf);
    let attach = attach(Some(&mut ebpf), "no program loads".into());
    Trial { release, programs: Ok(programs), attach }
}

/// Hands all programs to the kernel, as many at a time as an agent does; sorted by name.
fn load_all(ebpf: &mut Ebpf) -> Vec<Tried> {
    let left = Mutex::new(ebpf.programs_mut());
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    let mut tried: Vec<Tried> = thread::scope(|scope| {
        let loaders: Vec<_> = (0..load::loaders()).map(|_| scope.spawn(|| iter::from_fn(next).map(try_one).collect::<Vec<_>>())).collect();
        loaders.into_iter().flat_map(|loader| loader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    tried.sort_by(|a, b| a.name.cmp(&b.name));
    tried
}

fn try_one((name, program): (&str, &mut Program)) -> Tried {
    let loaded = load::verify(program).and_then(|()| match program {
        Program::SchedClassifier(program) => program.info(),
        Program::Xdp(program) => program.info(),
        _ => Err(ProgramError::NotLoaded),
    });
    let (verified_instructions, refusal) = match loaded {
        Ok(info) => (info.verified_instruction_count(), None),
        Err(error) => (None, Some(Refusal::of(name, &error))),
    };
    Tried { name: name.to_owned(), verified_instructions, refusal }
}

/// `cause`: why nothing can be tried without a program.
fn attach(ebpf: Option<&mut Ebpf>, cause: String) -> Attach {
    if !clsact::is_forced() {
        match bpf::has_tcx() {
            Ok(true) => return Attach::Tcx,
            Ok(false) => {}
            Err(error) => return Attach::Unknown(format!("a link of TCX: {error}")),
        }
    }
    let classifier = ebpf.and_then(|ebpf| {
        ebpf.programs_mut().find_map(|(_, program)| match program {
            Program::SchedClassifier(program) if program.fd().is_ok() => Some(program),
            _ => None,
        })
    });
    let Some(classifier) = classifier else { return Attach::Unknown(cause) };
    // A thread of its own: it moves to a network namespace that ends with it.
    let tried = thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: no pointers; only this thread moves.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(clsact::rehearse(classifier).map_err(|error| super::causes(error.as_ref())))
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    match tried {
        Ok(Ok(())) => Attach::Clsact,
        Ok(Err(error)) => Attach::Neither(error),
        Err(error) => {
            Attach::Unknown(format!("clsact, which is tried in a network namespace of its own: {error} (CAP_SYS_ADMIN is needed)"))
        }
    }
}
