//! The backends: nginx where it is installed, else the lab's own server.

use super::super::synthetic::BACK_PORT;
use anyhow::{Context, Result};
pub use splitter_lab::foreign::find;
use splitter_lab::{
    agent::quiet_log,
    http::body_byte,
    lab::{Lab, Process},
    serve,
};
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

/// Path of the large answer, of as many bytes as it says.
pub const LARGE: &str = "/bytes/1000000";
const LARGE_BYTES: u64 = 1_000_000;
const PATIENCE: Duration = Duration::from_secs(10);

fn nginx() -> Option<PathBuf> {
    find("nginx")
}

pub fn name() -> &'static str {
    if nginx().is_some() { "nginx" } else { "splitter-bench serve" }
}

/// Starts the server of backend `i`; `folder` is for its files.
pub fn start(lab: &Lab, i: usize, folder: &Path) -> Result<Process> {
    let (name, version) = (format!("server-{i}"), format!("v{i}"));
    let mut command = match nginx() {
        Some(nginx) => {
            let files = folder.join(&name);
            fs::create_dir_all(files.join("bytes"))?;
            fs::write(files.join(&LARGE[1..]), (0..LARGE_BYTES).map(body_byte).collect::<Vec<u8>>())?;
            fs::write(files.join("nginx.conf"), configuration(&files, &version))?;
            let mut command = lab.backend(i).command(nginx);
            command.arg("-p").arg(&files).arg("-c").arg(files.join("nginx.conf")).args(["-e", "stderr"]);
            command
        }
        None => {
            let listen = format!("[::]:{BACK_PORT}");
            let options = serve::Options::parse(["--listen", &listen, "--name", &version].map(String::from))?;
            let mut command = lab.backend(i).command(std::env::current_exe().context("where am I?")?);
            command.arg("serve").args(options.arguments());
            command
        }
    };
    let log = quiet_log(folder, &name)?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let server = Process::spawn(&name, &mut command)?;
    let local = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), BACK_PORT);
    lab.backend(i).run(|| server.wait_listening(local, PATIENCE))?.with_context(|| {
        let log = fs::read_to_string(folder.join(format!("{name}.log"))).unwrap_or_default();
        format!("{name} says: {log}")
    })?;
    Ok(server)
}

/// One process, no logs, connections kept for ever; answers as the lab's own server does.
fn configuration(files: &Path, version: &str) -> String {
    let files = files.display();
    let places = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|name| format!("  {name}_temp_path {files}/{name};\n"));
    format!(
        "daemon off;\nmaster_process off;\nuser root;\npid {files}/nginx.pid;\nevents {{ worker_connections 4096; }}\nhttp {{\n\
         {}  access_log off;\n  sendfile on;\n  tcp_nopush on;\n  default_type text/plain;\n  keepalive_requests 1000000000;\n  \
         keepalive_timeout 1h;\n  server {{\n    listen {BACK_PORT} backlog=16384;\n    add_header x-version {version};\n    location / {{ return 200 \"{version}\\n\"; }}\n    \
         location /bytes/ {{ root {files}; }}\n  }}\n}}\n",
        places.concat()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_large_answer_is_what_its_path_says() {
        assert_eq!(LARGE.rsplit('/').next().unwrap().parse(), Ok(LARGE_BYTES));
        let text = configuration(Path::new("/x"), "v1");
        assert!(
            text.contains("location /bytes/ { root /x; }") && text.contains("return 200 \"v1\\n\"") && text.contains("listen 8080 "),
            "{text}"
        );
        assert_eq!(text.matches('{').count(), text.matches('}').count());
    }
}
