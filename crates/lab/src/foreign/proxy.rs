//! Proxies that split by the same tags and weights: HAProxy with one thread, nginx with one worker, both tuned for small messages. Rivals of
//! the benchmarks, and a known good subject to try the tests' own machinery on.

use super::{require, start};
use crate::lab::{Namespace, Process};
use anyhow::{Result, ensure};
use std::{
    fmt::Write,
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    Haproxy,
    Nginx,
}

/// Who gets what: `X-Canary: always` and the cookie `canary=1` the last version, `X-Canary: never` and `canary=0` the first; everybody else
/// by weight, each request for itself.
#[derive(Clone, Debug)]
pub struct Split {
    pub frontends: Vec<SocketAddr>,
    /// Name, weight and backends; weights sum to 100.
    pub versions: Vec<(String, u32, Vec<SocketAddr>)>,
}

impl Split {
    /// The same as rules of a policy.
    pub const RULES: &str = "rules: [{match: {header: {name: X-Canary, value: always}}, version: v2}, \
                             {match: {header: {name: X-Canary, value: never}}, version: v1}, \
                             {match: {cookie: {name: canary, value: \"1\"}}, version: v2}, \
                             {match: {cookie: {name: canary, value: \"0\"}}, version: v1}]";

    fn first(&self) -> &str {
        &self.versions[0].0
    }

    fn last(&self) -> &str {
        &self.versions[self.versions.len() - 1].0
    }
}

impl Proxy {
    pub fn program(self) -> &'static str {
        match self {
            Proxy::Haproxy => "haproxy",
            Proxy::Nginx => "nginx",
        }
    }

    /// Starts it in the node, which gets the frontends' addresses.
    pub fn start(self, node: &Namespace, split: &Split, folder: &Path) -> Result<Process> {
        ensure!(split.versions.iter().map(|(_, weight, _)| weight).sum::<u32>() == 100, "weights of a rival are percentages");
        let program = require(self.program())?;
        let title = format!("proxy-{}", self.program());
        let files = folder.join(&title);
        fs::create_dir_all(&files)?;
        let mut addresses: Vec<IpAddr> = split.frontends.iter().map(SocketAddr::ip).collect();
        addresses.dedup();
        let prefix = |address: &IpAddr| if address.is_ipv4() { 32 } else { 128 };
        let lines: Vec<String> =
            addresses.iter().map(|address| format!("address replace {address}/{} dev lo\n", prefix(address))).collect();
        node.batch(&lines.concat())?;
        let mut command = node.command(program);
        match self {
            Proxy::Haproxy => {
                fs::write(files.join("haproxy.cfg"), haproxy(split))?;
                command.arg("-db").arg("-f").arg(files.join("haproxy.cfg"));
            }
            Proxy::Nginx => {
                fs::write(files.join("nginx.conf"), nginx(&files, split))?;
                command.arg("-p").arg(&files).arg("-c").arg(files.join("nginx.conf")).args(["-e", "stderr"]);
            }
        }
        start(&title, &mut command, folder, |process| node.run(|| process.wait_listening(split.frontends[0], PATIENCE))?)
    }
}

fn haproxy(split: &Split) -> String {
    let mut text = String::from(
        "global\n  nbthread 1\n  maxconn 8000\n  tune.bufsize 32768\ndefaults\n  mode http\n  option http-keep-alive\n  http-reuse always\n  \
         timeout client 1h\n  timeout server 1h\n  timeout tunnel 1h\n  timeout connect 1s\n  retries 3\n  option redispatch\nfrontend in\n",
    );
    // Writing to a string cannot fail.
    for frontend in &split.frontends {
        let _ = writeln!(text, "  bind {frontend} backlog 16384");
    }
    let (first, last) = (split.first(), split.last());
    let _ = write!(
        text,
        "  use_backend {last} if {{ req.hdr(x-canary) -m str always }}\n  use_backend {first} if {{ req.hdr(x-canary) -m str never }}\n  \
         use_backend {last} if {{ req.cook(canary) -m str 1 }}\n  use_backend {first} if {{ req.cook(canary) -m str 0 }}\n"
    );
    // Each draw is among those that the versions before left over.
    let mut left = 100;
    for (name, weight, _) in &split.versions[1..] {
        let _ = writeln!(text, "  use_backend {name} if {{ rand({left}) lt {weight} }}");
        left -= weight;
    }
    let _ = writeln!(text, "  default_backend {first}");
    for (name, _, backends) in &split.versions {
        let _ = writeln!(text, "backend {name}\n  balance random");
        for (i, backend) in backends.iter().enumerate() {
            let _ = writeln!(text, "  server s{i} {backend}");
        }
    }
    text
}

fn nginx(files: &Path, split: &Split) -> String {
    let files = files.display();
    let places = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|name| format!("  {name}_temp_path {files}/{name};\n"));
    let (first, last) = (split.first(), split.last());
    let mut text = format!(
        "daemon off;\nmaster_process off;\nuser root;\npid {files}/nginx.pid;\nevents {{ worker_connections 16384; }}\nhttp {{\n{}  \
         access_log off;\n  keepalive_requests 1000000000;\n  keepalive_timeout 1h;\n  large_client_header_buffers 4 32k;\n  \
         split_clients \"$request_id\" $by_weight {{\n",
        places.concat()
    );
    for (name, weight, _) in split.versions[1..].iter().filter(|(_, weight, _)| *weight > 0) {
        let _ = writeln!(text, "    {weight}% {name};");
    }
    let _ = write!(
        text,
        "    * {first};\n  }}\n  map $cookie_canary $by_cookie {{ 1 {last}; 0 {first}; default $by_weight; }}\n  \
         map $http_x_canary $version {{ always {last}; never {first}; default $by_cookie; }}\n"
    );
    for (name, _, backends) in &split.versions {
        let servers: Vec<String> = backends.iter().map(|backend| format!("server {backend}; ")).collect();
        let _ = writeln!(
            text,
            "  upstream {name} {{ {}keepalive 256; keepalive_requests 1000000000; keepalive_timeout 1h; }}",
            servers.concat()
        );
    }
    let listen: Vec<String> = split.frontends.iter().map(|frontend| format!("    listen {frontend} backlog=16384;\n")).collect();
    let _ = write!(
        text,
        "  server {{\n{}    client_max_body_size 0;\n    location / {{\n      proxy_http_version 1.1;\n      proxy_set_header Connection \"\";\n      \
         proxy_set_header Host $http_host;\n      proxy_buffers 16 64k;\n      proxy_buffer_size 64k;\n      proxy_busy_buffers_size 128k;\n      \
         proxy_max_temp_file_size 0;\n      proxy_pass http://$version;\n    }}\n  }}\n}}\n",
        listen.concat()
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split() -> Split {
        let backends = |i: u8| vec![SocketAddr::new([10, 2, i, 2].into(), 8080)];
        let versions = vec![("v1".into(), 90, backends(1)), ("v2".into(), 10, backends(2))];
        Split { frontends: vec!["10.9.9.9:80".parse().unwrap(), "[fd09::9]:80".parse().unwrap()], versions }
    }

    #[test]
    fn haproxy_prefers_tags_to_weights() {
        let text = haproxy(&split());
        let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("no {what:?} in {text}"));
        assert!(at("use_backend v2 if { req.hdr(x-canary) -m str always }") < at("use_backend v2 if { rand(100) lt 10 }"));
        assert!(
            at("rand(100)") < at("default_backend v1") && text.contains("server s0 10.2.2.2:8080") && text.contains("bind [fd09::9]:80")
        );
    }

    #[test]
    fn nginx_splits_each_request_for_itself() {
        let text = nginx(Path::new("/x"), &split());
        assert_eq!(text.matches('{').count(), text.matches('}').count());
        assert!(text.contains("split_clients \"$request_id\"") && text.contains("10% v2;") && text.contains("* v1;"), "{text}");
    }
}
