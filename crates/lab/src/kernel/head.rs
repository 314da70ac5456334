//! The head scanner in the kernel, alone: texts in, what it read out, and what that took.

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, Pod, TestRun, TestRunOptions,
    maps::{Array, MapData},
    programs::SchedClassifier,
};
use splitter_common::{
    abi::{Addr, HttpRules},
    http::{HEAD_LIMIT, HEAD_SLACK, HeadText, RequestHead, ResponseHead, chunks::Chunks},
};
use std::{fs, path::Path};

/// The programs of the object `head`.
pub struct Scanner(Ebpf);

/// A program of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Everything but the scan.
    Nothing,
    /// Every word read, nothing else.
    Reference,
    Request,
    Response,
    /// A step through a chunked body.
    Chunks,
}

impl Part {
    const ALL: [Part; 5] = [Part::Nothing, Part::Reference, Part::Request, Part::Response, Part::Chunks];

    fn name(self) -> &'static str {
        match self {
            Part::Nothing => "head_nothing",
            Part::Reference => "head_reference",
            Part::Request => "head_request",
            Part::Response => "head_response",
            Part::Chunks => "head_chunks",
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Task {
    client: Addr,
    len: u32,
    ruled: u32,
    answers_head: u32,
    pad: u32,
}
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Value<T>(T);
// SAFETY: integers only, no padding.
unsafe impl Pod for Task {}
// SAFETY: the scanner's results are made of integers without implicit padding.
unsafe impl Pod for Value<RequestHead> {}
// SAFETY: as above.
unsafe impl Pod for Value<ResponseHead> {}
// SAFETY: as above.
unsafe impl Pod for Value<Chunks> {}

/// The text as the scanner takes it, filled up with `filler`; `None` when it is longer.
pub fn padded(text: &[u8], filler: u8) -> Option<Box<HeadText>> {
    let mut padded = Box::new([filler; HEAD_LIMIT as usize + HEAD_SLACK as usize]);
    padded.get_mut(..text.len())?.copy_from_slice(text);
    Some(padded)
}

impl Scanner {
    /// Loads `objects/head`.
    pub fn load(objects: &Path) -> Result<Self> {
        let object = fs::read(objects.join("head")).context("the kernel object of the head scanner")?;
        let mut ebpf = Ebpf::load(&object).context("cannot load the head scanner")?;
        for part in Part::ALL {
            let program: &mut SchedClassifier = ebpf.program_mut(part.name()).context(part.name())?.try_into()?;
            program.load().with_context(|| format!("cannot load {}", part.name()))?;
        }
        Ok(Self(ebpf))
    }

    /// Instructions that the verifier walked.
    pub fn verified(&self, part: Part) -> Result<u32> {
        let program: &SchedClassifier = self.0.program(part.name()).context(part.name())?.try_into()?;
        program.info()?.verified_instruction_count().context("the kernel does not tell")
    }

    /// What the next runs read.
    pub fn set(&mut self, text: &[u8], rules: Option<&HttpRules>, client: Addr, answers_head: bool) -> Result<()> {
        let padded = padded(text, 0xa5).context("the text is too long")?;
        let task = Task { client, len: text.len() as u32, ruled: rules.is_some().into(), answers_head: answers_head.into(), pad: 0 };
        self.map::<Task>("TASK")?.set(0, task, 0)?;
        self.map::<HeadText>("TEXT")?.set(0, *padded, 0)?;
        if let Some(rules) = rules {
            self.map::<HttpRules>("RULES")?.set(0, *rules, 0)?;
        }
        Ok(())
    }

    /// The request that was set.
    pub fn request(&mut self) -> Result<RequestHead> {
        self.run(Part::Request, 1)?;
        Ok(self.map::<Value<RequestHead>>("REQUEST")?.get(&0, 0)?.0)
    }

    /// The response that was set.
    pub fn response(&mut self) -> Result<ResponseHead> {
        self.run(Part::Response, 1)?;
        Ok(self.map::<Value<ResponseHead>>("RESPONSE")?.get(&0, 0)?.0)
    }

    /// Lets the chunks go on through the text that was set, and answers how many bytes they read.
    pub fn chunks(&mut self, chunks: &mut Chunks) -> Result<u32> {
        self.map::<Value<Chunks>>("CHUNKS")?.set(0, Value(*chunks), 0)?;
        let (used, _) = self.test(Part::Chunks, 1)?;
        *chunks = self.map::<Value<Chunks>>("CHUNKS")?.get(&0, 0)?.0;
        Ok(used)
    }

    /// Nanoseconds a run, whole ones.
    pub fn run(&mut self, part: Part, repeat: u32) -> Result<f64> {
        Ok(self.test(part, repeat)?.1)
    }

    fn test(&mut self, part: Part, repeat: u32) -> Result<(u32, f64)> {
        let packet = [0; 64];
        let program: &mut SchedClassifier = self.0.program_mut(part.name()).context(part.name())?.try_into()?;
        let result = program.test_run(TestRunOptions { data_in: Some(&packet), repeat, ..Default::default() })?;
        ensure!(result.return_value as i32 >= 0, "{} did not run", part.name());
        Ok((result.return_value, result.duration.as_nanos() as f64))
    }

    fn map<T: Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, T>> {
        let map = self.0.map_mut(name).with_context(|| format!("the object has no map {name}"))?;
        Array::try_from(map).with_context(|| format!("map {name}"))
    }
}
