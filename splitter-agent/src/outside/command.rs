//! Commands: no shell, a process group of their own, killed when their time is over.

use super::{OutsideError, Subject};
use std::process::Stdio;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
};

/// Output that is read, bytes; the rest is thrown away.
const OUTPUT: u64 = 64 << 10;

/// Kills the whole group when the future that waits is dropped.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(id) = self.0.id().and_then(|id| i32::try_from(id).ok()) {
            // SAFETY: no pointers; the child is not reaped yet, so its number is not another's.
            unsafe { libc::kill(-id, libc::SIGKILL) };
        }
    }
}

/// Exit code (`None`: a signal) and output. The environment tells what it is about; `input` goes to standard input.
pub async fn run(words: &[String], subject: &Subject, input: Option<String>) -> Result<(Option<i32>, String), OutsideError> {
    let Some((program, arguments)) = words.split_first() else {
        return Err(OutsideError::Value("no program is named".into()));
    };
    let failed = |error| OutsideError::Command(program.clone(), error);
    let backends: Vec<String> = subject.backends.iter().map(ToString::to_string).collect();
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("SPLITTER_SERVICE", &subject.service)
        .env("SPLITTER_CANARY", &subject.canary)
        .env("SPLITTER_CANARY_BACKENDS", backends.join(" "))
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true);
    let mut group = Group(command.spawn().map_err(failed)?);
    let (stdin, stdout) = (group.0.stdin.take(), group.0.stdout.take());
    let write = async {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            // A command that does not read its input is fine.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let read = async {
        let mut output = Vec::new();
        if let Some(stdout) = stdout {
            let mut stdout = stdout.take(OUTPUT);
            stdout.read_to_end(&mut output).await?;
            tokio::io::copy(&mut stdout.into_inner(), &mut tokio::io::sink()).await?;
        }
        Ok::<_, std::io::Error>(output)
    };
    let (_, output) = tokio::join!(write, read);
    let status = group.0.wait().await.map_err(failed)?;
    Ok((status.code(), String::from_utf8_lossy(&output.map_err(failed)?).into_owned()))
}
