//! The terminal while a program has all of it: raw mode, the alternate screen, key presses, and its restoration however the program ends.

use anyhow::{Context, Result};
use ratatui::{
    DefaultTerminal, Frame,
    crossterm::event::{self, Event},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

/// How long the reader of keys sleeps at most before it looks whether it is to end.
const NAP: Duration = Duration::from_millis(50);
/// Events that may wait.
const QUEUE: usize = 64;

/// A terminal in use; restored when dropped, and by the hook that ratatui installs when the program panics.
pub struct Screen {
    terminal: DefaultTerminal,
    events: mpsc::Receiver<Event>,
    end: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
    signals: [Signal; 3],
}

impl Screen {
    /// # Errors
    /// When there is no terminal to read keys from.
    pub fn open() -> Result<Self> {
        let of = |kind| signal(kind).context("cannot wait for signals");
        // In place before the terminal is changed, so that none of them ends the process in between.
        let signals = [of(SignalKind::terminate())?, of(SignalKind::hangup())?, of(SignalKind::interrupt())?];
        let terminal = ratatui::try_init().context("cannot use this terminal; `splitter top | cat` prints a plain snapshot")?;
        let (sender, events) = mpsc::channel(QUEUE);
        let end = Arc::new(AtomicBool::new(false));
        let ends = end.clone();
        let reader = thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                let read = match event::poll(NAP) {
                    Ok(false) => continue,
                    Ok(true) => event::read(),
                    Err(error) => Err(error),
                };
                // The terminal or the program is gone.
                let Ok(event) = read else { return };
                if sender.blocking_send(event).is_err() {
                    return;
                }
            }
        });
        Ok(Self { terminal, events, end, reader: Some(reader), signals })
    }

    /// The next key press or change of size; `None` when the program is to end, by a signal or because the terminal is gone.
    pub async fn event(&mut self) -> Option<Event> {
        let [terminate, hangup, interrupt] = &mut self.signals;
        tokio::select! {
            event = self.events.recv() => event,
            _ = terminate.recv() => None,
            _ = hangup.recv() => None,
            _ = interrupt.recv() => None,
        }
    }

    pub fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> Result<()> {
        self.terminal.draw(draw).map(drop).context("cannot draw on this terminal")
    }

    /// Columns and rows; 80 x 24 when the terminal does not know.
    pub fn size(&self) -> (u16, u16) {
        let size = self.terminal.size().unwrap_or_default();
        if size.width == 0 || size.height == 0 { (80, 24) } else { (size.width, size.height) }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        self.events.close();
        if let Some(reader) = self.reader.take() {
            // A reader that panicked has nothing to say.
            let _ = reader.join();
        }
        ratatui::restore();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::top::pty;
    use std::process::Command;

    /// Set for the process that panics, on a terminal of its own.
    const ON_PURPOSE: &str = "SPLITTER_TEST_PANIC";

    fn panic_on_this_terminal() -> ! {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _entered = runtime.enter();
        let _screen = Screen::open().unwrap();
        // As a release build ends: without unwinding, so that nothing is dropped.
        std::panic::set_hook({
            let hook = std::panic::take_hook();
            Box::new(move |info| {
                hook(info);
                std::process::exit(134);
            })
        });
        panic!("on purpose");
    }

    #[test]
    fn a_panic_gives_the_terminal_back() {
        if std::env::var_os(ON_PURPOSE).is_some() {
            panic_on_this_terminal();
        }
        let mut pty = pty::Pty::open(80, 24);
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "cli::top::terminal::tests::a_panic_gives_the_terminal_back", "--nocapture"]).env(ON_PURPOSE, "1");
        let mut child = pty.spawn(&mut command);
        pty.expect("\u{1b}[?1049h");
        pty.expect("\u{1b}[?1049l");
        pty.expect("on purpose");
        assert_eq!(pty.wait(&mut child), Some(134), "{}", pty.seen);
        assert!(pty.is_cooked());
    }
}
