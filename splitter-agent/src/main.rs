//! The `splitter` program: the node agent and its command line.

fn main() -> std::process::ExitCode {
    splitter_agent::cli::run()
}
