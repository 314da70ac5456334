//! What users type: commands, options, defaults, help.

use super::{complete, out::Output, parse, top::Column};
use crate::{control, telemetry};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::{ArgValueCompleter, Shell};
use splitter_api::{ExplainRequest, FlowQuery, FlowSort, FlowState, StatusQuery, StatusSort, TraceRequest};
use std::{net::SocketAddr, path::PathBuf};

/// Where the agent listens unless told otherwise.
pub const DEFAULT_ADMIN: &str = "/run/splitter/admin.sock";

/// Splits a service's traffic between versions in the kernel.
#[derive(Parser)]
#[command(
    name = "splitter",
    version,
    after_help = "Examples:
  splitter check policy.yaml                 is the policy right? (offline)
  splitter agent --policy policy.yaml        split traffic on this node
  splitter status                            asked and achieved shares
  splitter weight checkout v1=95 v2=5        send 5% to v2, now
  splitter weight checkout v2=0              take it back
  splitter rollout start checkout            let the gates decide
  splitter explain checkout --client 10.1.7.3
  splitter doctor                            is this host fit? what to do?

`splitter help COMMAND` has details and examples. Exit codes: 0 done, 1 failed, 2 wrong usage; `rollout status --wait` has more."
)]
pub struct Cli {
    /// The agent's admin socket
    #[arg(long, global = true, env = "SPLITTER_ADMIN", value_name = "SOCKET", default_value = DEFAULT_ADMIN)]
    pub admin: PathBuf,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run the node agent: load the programs, apply the policy and follow its changes
    #[command(after_help = AGENT_EXAMPLES)]
    Agent(Agent),
    /// Check a policy offline; errors as PATH:LINE:COL: message
    #[command(after_help = "Examples:\n  splitter check policy.yaml\n  splitter check /etc/splitter/policies -o json")]
    Check {
        /// A YAML file, or a folder of *.yaml and *.yml
        path: PathBuf,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Show what the node does: shares asked and achieved, connections, latency
    #[command(
        after_help = "Examples:\n  splitter status\n  splitter status checkout                    with its backends\n  splitter status 'shop/*' --sort failed --limit 10\n  splitter status -o json | jq '.services[].versions'"
    )]
    Status(Status),
    /// Print the policy that is in force as YAML, with the weights as they are now
    #[command(
        after_help = "Examples:\n  splitter policy\n  splitter policy checkout > checkout.new && mv checkout.new /etc/splitter/policies/checkout.yaml\n  splitter policy 'shop/*'\n\nComments of the file, labels and what is as it is by default are not in it. Addresses that were found for names are not; the names are."
    )]
    Policy {
        /// Names of services, or patterns such as 'shop/*'; all of them by default
        #[arg(value_name = "SERVICE", add = ArgValueCompleter::new(complete::services))]
        services: Vec<String>,
    },
    /// Set weights now; versions not named keep theirs
    #[command(
        after_help = "Examples:\n  splitter weight checkout v1=50 v2=50\n  splitter weight checkout v2=0            nobody new to v2\n  splitter weight checkout v2=10 --dry-run\n\nThe policy file is not written: its next change of these weights replaces what is set here. `splitter policy` prints it with the weights as they are."
    )]
    Weight {
        /// Name of the service (namespace/name when it has a namespace)
        #[arg(add = ArgValueCompleter::new(complete::services))]
        service: String,
        /// Relative whole numbers: v1=95 v2=5
        #[arg(required = true, value_name = "VERSION=WEIGHT", value_parser = parse::weight, add = ArgValueCompleter::new(complete::weights))]
        weights: Vec<(String, u32)>,
        /// Only say what would change
        #[arg(long)]
        dry_run: bool,
        #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
        output: Output,
    },
    /// Promote a canary step by step, or take it back
    #[command(
        after_help = "Examples:\n  splitter rollout start checkout\n  splitter rollout status checkout\n  splitter rollout abort checkout --reason 'wrong image'\n  splitter rollout history checkout -o json\n\nThe policy's `rollout` says which version, which steps and which gates."
    )]
    Rollout {
        #[command(subcommand)]
        command: RolloutCommand,
    },
    /// Say which version a client gets, and why
    #[command(
        after_help = "Examples:\n  splitter explain checkout --client 10.1.7.3\n  splitter explain checkout --client 10.1.7.3:40000 -o json\n  splitter explain shop -H 'X-Canary: always' --path /beta?debug=1 --cookie uid=7"
    )]
    Explain(Explain),
    /// List live flows
    #[command(
        after_help = "Examples:\n  splitter flows checkout\n  splitter flows checkout --client 10.1.7.0/24 --state established\n  splitter flows --version v2 --sort idle --limit 20\n  splitter flows -o json | jq 'group_by(.version) | map({(.[0].version): length}) | add'\n\nWithout --sort a --limit ends the walk over the kernel's tables: quick, however many flows there are."
    )]
    Flows(Flows),
    /// Watch decisions live: who got which version and backend, why, and what became of it
    #[command(
        after_help = "Examples:\n  splitter trace checkout\n  splitter trace --client 10.1.7.0/24 --count 20\n  splitter trace shop --version v2 -o json | jq 'select(.status >= 500)'\n\nCtrl-C ends it. Nothing is written in the kernel while nobody looks. What is not shown, because it comes too fast, is counted."
    )]
    Trace(Trace),
    /// Watch shares, rates and latency live; ? lists the keys
    #[command(
        after_help = "Examples:\n  splitter top\n  splitter top 'shop/*' --sort success --interval 2s\n  splitter top --iterations 3 | less           plain snapshots\n\nWhen standard output is no terminal, one snapshot is printed."
    )]
    Top(Top),
    /// Check kernel, privileges, conflicts and tuning of this host, and say what to do
    #[command(
        after_help = "Examples:\n  splitter doctor\n  splitter doctor --policy policy.yaml -o json\n  splitter doctor --load -o json            what this kernel says to each program\n\nThe programs are loaded for trial; nothing is attached. Exit code 1 when a check fails."
    )]
    Doctor {
        /// Only load the kernel programs for trial, and show each one with what the verifier says
        #[arg(long, conflicts_with = "policy")]
        load: bool,
        /// Also check the host against this policy
        #[arg(long)]
        policy: Option<PathBuf>,
        #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
        output: Output,
    },
    /// Remove all programs, links and maps: the host works as before
    #[command(
        after_help = "Stop the agent first; while it lives, this is refused. Flows that were translated break; new ones take the plain route."
    )]
    Detach {
        /// The bpffs directory that the agent was given
        #[arg(long, value_name = "DIR")]
        pins: Option<PathBuf>,
        /// Stop the agent that lives on these pins, and wait for its end
        #[arg(long)]
        force: bool,
    },
    /// Print a completion script
    #[command(
        after_help = "Examples:\n  splitter completions bash > /etc/bash_completion.d/splitter\n  splitter completions zsh > /usr/share/zsh/site-functions/_splitter\n  splitter completions fish > ~/.config/fish/completions/splitter.fish\n\nThe script asks `splitter` itself, which asks the agent for the names of services and versions."
    )]
    Completions {
        /// The shell that is to complete
        shell: Shell,
    },
}

#[derive(Subcommand)]
pub enum RolloutCommand {
    /// Begin at the first step, by the policy as it is now
    #[command(
        after_help = "Examples:\n  splitter rollout start checkout --dry-run     say what happens to the shares\n  splitter rollout start checkout\n  splitter rollout start checkout --override-freeze --reason 'hotfix 4711'\n\nAfter a promotion it begins anew: the canary goes from 100% back to the first step."
    )]
    Start {
        #[command(flatten)]
        word: RolloutWord,
        #[command(flatten)]
        freeze: OverrideFreeze,
    },
    /// Show gates, canary beside baseline, and what is missing to decide
    #[command(
        after_help = "Examples:\n  splitter rollout status\n  splitter rollout status checkout -o json\n  splitter rollout status checkout --watch\n  splitter rollout status checkout --wait=30m    for CI\n\nExit codes with --wait: 0 promoted, 1 the agent cannot be asked, 3 rolled back, 4 aborted, 5 not ended within TIME, 6 no rollout, or not started."
    )]
    Status(RolloutView),
    /// Keep the share; gates still take the canary back
    #[command(after_help = "Examples:\n  splitter rollout pause checkout --reason 'lunch'")]
    Pause(RolloutWord),
    /// Go on after a pause, or after weights were set by hand
    #[command(after_help = "Examples:\n  splitter rollout resume checkout")]
    Resume {
        #[command(flatten)]
        word: RolloutWord,
        #[command(flatten)]
        freeze: OverrideFreeze,
    },
    /// Give the canary everything now; gates still watch
    #[command(after_help = "Examples:\n  splitter rollout promote checkout")]
    Promote {
        #[command(flatten)]
        word: RolloutWord,
        #[command(flatten)]
        freeze: OverrideFreeze,
    },
    /// Take the canary back now
    #[command(after_help = "Examples:\n  splitter rollout abort checkout --reason 'wrong image'")]
    Abort(RolloutWord),
    /// After a promotion: back to the weights from before
    #[command(
        after_help = "Examples:\n  splitter rollout undo checkout --reason 'slow at night'\n\nThe canary gets 0, the others exactly what they had before the rollout; also after a restart of the agent."
    )]
    Undo(RolloutWord),
    /// Show who or what changed which weight, when, and on which evidence
    #[command(
        after_help = "Examples:\n  splitter rollout history checkout\n  splitter rollout history checkout -o json | jq '.[-1].evidence'"
    )]
    History {
        /// Name of the service
        #[arg(add = ArgValueCompleter::new(complete::services))]
        service: String,
        #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
        output: Output,
    },
    /// Break the canary on purpose, and measure how soon it is taken back
    #[command(
        after_help = "Examples:\n  splitter rollout drill checkout --inject 'ssh canary systemctl stop checkout' --restore 'ssh canary systemctl start checkout'\n\nThe commands run here, by /bin/sh, with your rights. Exit code 1 when the canary is not taken back in time."
    )]
    Drill {
        /// Name of the service; its rollout must run
        #[arg(add = ArgValueCompleter::new(complete::services))]
        service: String,
        /// Makes the canary fail or slow
        #[arg(long, value_name = "COMMAND")]
        inject: String,
        /// Takes that away again
        #[arg(long, value_name = "COMMAND")]
        restore: Option<String>,
        /// Longest wait for the rollback
        #[arg(long, default_value = "60s", value_parser = parse::interval, value_name = "TIME")]
        patience: parse::Interval,
        #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
        output: Output,
    },
}

#[derive(Args)]
pub struct RolloutWord {
    /// Name of the service (namespace/name when it has a namespace)
    #[arg(add = ArgValueCompleter::new(complete::services))]
    pub service: String,
    /// Why, for the audit log
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Only say what would happen
    #[arg(long)]
    pub dry_run: bool,
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Output,
}

#[derive(Args)]
pub struct RolloutView {
    /// Only this service, in full
    #[arg(add = ArgValueCompleter::new(complete::services))]
    pub service: Option<String>,
    /// Follow it until it ends; a line at each change when standard output is no terminal
    #[arg(long, requires = "service")]
    pub watch: bool,
    /// End when the rollout has ended, at the latest after TIME; the exit code says how
    #[arg(long, requires = "service", value_name = "TIME", num_args = 0..=1, require_equals = true, value_parser = parse::interval)]
    pub wait: Option<Option<parse::Interval>>,
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Output,
}

#[derive(Args)]
pub struct Status {
    /// Only these services, in full; patterns with * and ? name several, in short
    #[arg(value_name = "SERVICE", add = ArgValueCompleter::new(complete::services))]
    pub services: Vec<String>,
    /// Order of the services
    #[arg(long, value_enum, default_value_t, value_name = "KEY", hide_possible_values = false)]
    pub sort: StatusSort,
    /// At most so many services
    #[arg(long, value_name = "N", value_parser = parse::limit)]
    pub limit: Option<usize>,
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Output,
}

impl Status {
    /// The format, and what to ask the agent.
    pub fn request(self) -> (Output, StatusQuery) {
        let Self { services, sort, limit, output } = self;
        (output, StatusQuery { services, sort, limit })
    }
}

#[derive(Args)]
pub struct Flows {
    /// Only this service; a pattern with * and ? names several
    #[arg(add = ArgValueCompleter::new(complete::services))]
    pub service: Option<String>,
    /// Only flows of clients in this network, or of this client
    #[arg(long, value_name = "NET", value_parser = parse::network, help_heading = "Filters")]
    pub client: Option<String>,
    /// Only flows of this version
    #[arg(long, value_name = "V", help_heading = "Filters", add = ArgValueCompleter::new(complete::versions))]
    pub version: Option<String>,
    /// Only flows to this backend
    #[arg(long, value_name = "IP[:PORT]", value_parser = parse::backend, help_heading = "Filters")]
    pub backend: Option<String>,
    /// Only flows in this state
    #[arg(long, value_enum, value_name = "STATE", help_heading = "Filters")]
    pub state: Option<FlowState>,
    /// Order of the flows [default: service, version, client]
    #[arg(long, value_enum, value_name = "KEY")]
    pub sort: Option<FlowSort>,
    /// At most so many flows
    #[arg(long, value_name = "N", value_parser = parse::limit)]
    pub limit: Option<usize>,
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Output,
}

impl Flows {
    /// The format, and what to ask the agent.
    pub fn request(self) -> (Output, FlowQuery) {
        let Self { service, client, version, backend, state, sort, limit, output } = self;
        (output, FlowQuery { service, client, version, backend, state, sort, limit })
    }
}

#[derive(Args)]
pub struct Trace {
    /// Only this service
    #[arg(add = ArgValueCompleter::new(complete::services))]
    pub service: Option<String>,
    /// Only clients in this network, or this client
    #[arg(long, value_name = "NET", value_parser = parse::network, help_heading = "Filters")]
    pub client: Option<String>,
    /// Only this version
    #[arg(long, value_name = "V", help_heading = "Filters", add = ArgValueCompleter::new(complete::versions))]
    pub version: Option<String>,
    /// End after this many decisions
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Events a second that each CPU tells at most [default: 2000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(control::trace::MOST)))]
    pub rate: Option<u32>,
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Output,
}

impl Trace {
    /// The format, how many, and what to ask the agent.
    pub fn request(self) -> (Output, Option<u64>, TraceRequest) {
        let Self { service, client, version, count, rate, output } = self;
        (output, count, TraceRequest { service, version, client, rate })
    }
}

#[derive(Args)]
pub struct Top {
    /// Only these services; patterns with * and ? name several
    #[arg(value_name = "SERVICE", add = ArgValueCompleter::new(complete::services))]
    pub services: Vec<String>,
    /// Column to sort by at first
    #[arg(long, value_enum, default_value_t, value_name = "COLUMN")]
    pub sort: Column,
    /// Time between looks
    #[arg(long, default_value = "1s", value_parser = parse::interval, value_name = "TIME")]
    pub interval: parse::Interval,
    /// End after this many looks; that many snapshots when standard output is no terminal
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub iterations: Option<u64>,
}

#[derive(Args)]
pub struct OverrideFreeze {
    /// Also in a freeze window, for this rollout; told in the audit log
    #[arg(long)]
    pub override_freeze: bool,
}

/// `-o` of commands that print text lines instead of tables.
#[derive(Args, Clone, Copy)]
pub struct OutputArg {
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Output,
}

impl OutputArg {
    pub fn is_json(self) -> bool {
        self.output.is_json()
    }
}

const AGENT_EXAMPLES: &str = "Examples:
  splitter agent --policy /etc/splitter/policies
  splitter agent --policy policy.yaml --interface 'veth*' --interface eth0:uplink --xdp native
  splitter agent --policy policy.yaml --log json --metrics 0.0.0.0:9964

Needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, and gives up the others. When it stops, the kernel goes on splitting; `splitter detach` ends that.";

#[derive(Args)]
pub struct Agent {
    /// A YAML file, or a folder of *.yaml and *.yml; followed when it changes
    #[arg(long, value_name = "PATH")]
    pub policy: PathBuf,
    /// DNS server for names of backends, instead of those in /etc/resolv.conf; may be given several times
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = parse::resolver)]
    pub resolver: Vec<SocketAddr>,
    /// Interfaces that clients or backends sit behind; `:uplink` marks those for XDP, `!GLOB` leaves some out [default: all Ethernet that is up]
    #[arg(long, value_name = "GLOB[:uplink]", value_parser = parse::interface)]
    pub interface: Vec<String>,
    /// XDP on uplinks
    #[arg(long, value_enum, default_value_t)]
    pub xdp: Xdp,
    /// Address for /metrics, /healthz and /readyz
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9964")]
    pub metrics: SocketAddr,
    /// Directory for what must outlive the agent
    #[arg(long, value_name = "DIR", default_value = "/var/lib/splitter")]
    pub state: PathBuf,
    /// bpffs directory for pinned maps and links; one for each agent
    #[arg(long, value_name = "DIR")]
    pub pins: Option<PathBuf>,
    /// TCP flows that each family's table can hold; used when the tables are made
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1024..=1 << 26))]
    pub max_flows: Option<u32>,
    /// Which way new flows take whose service does not say: past the stack and netfilter, or through them
    #[arg(long, value_enum, default_value_t)]
    pub path: Way,
    /// TCP timestamps for clients of http services
    #[arg(long, value_enum, default_value_t)]
    pub timestamps: Timestamps,
    /// Leave root all its capabilities, for hooks and commands of rollouts that need more than the agent
    #[arg(long)]
    pub keep_capabilities: bool,
    /// The kernel programs tell what they do with packets that are not usual, at level debug of the log: for developers, not for production
    #[arg(long)]
    pub debug_programs: bool,
    /// Format of the log on standard error
    #[arg(long, value_enum, default_value_t)]
    pub log: telemetry::Format,
    /// Least important messages logged
    #[arg(long, value_enum, default_value_t)]
    pub log_level: telemetry::Level,
}

#[derive(Clone, Copy, Default, ValueEnum)]
pub enum Xdp {
    /// TC only
    #[default]
    Off,
    /// In the driver
    Native,
    /// In the stack: for tests
    Generic,
}

#[derive(Clone, Copy, Default, ValueEnum)]
pub enum Way {
    /// Through the stack where netfilter has rules for packets that are routed; looked at again and again
    #[default]
    Auto,
    /// From interface to interface: fastest; netfilter does not see them
    Redirect,
    /// Through the stack: netfilter sees clients and backends
    Stack,
}

impl From<Way> for splitter_policy::model::Way {
    fn from(way: Way) -> Self {
        match way {
            Way::Auto => Self::Auto,
            Way::Redirect => Self::Redirect,
            Way::Stack => Self::Stack,
        }
    }
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Timestamps {
    /// Where all backends of a service agree to them; each is asked by a connection that is opened and reset
    #[default]
    Auto,
    /// Never; nobody is asked
    Off,
}

impl From<Xdp> for control::Xdp {
    fn from(xdp: Xdp) -> Self {
        match xdp {
            Xdp::Off => Self::Off,
            Xdp::Native => Self::Native,
            Xdp::Generic => Self::Generic,
        }
    }
}

#[derive(Args)]
pub struct Explain {
    /// Name of the service
    #[arg(add = ArgValueCompleter::new(complete::services))]
    pub service: String,
    /// The client's address; with its port for `splitBy: connection`
    #[arg(long, value_name = "IP[:PORT]", value_parser = parse::client)]
    pub client: Option<String>,
    /// A header of the request
    #[arg(short = 'H', long = "header", value_name = "'Name: value'", value_parser = parse::header)]
    pub headers: Vec<(String, String)>,
    /// A cookie of the request
    #[arg(long = "cookie", value_name = "K=V", value_parser = parse::cookie)]
    pub cookies: Vec<(String, String)>,
    /// The request's path
    #[arg(long, value_name = "P")]
    pub path: Option<String>,
    /// The request's method
    #[arg(long, value_name = "METHOD")]
    pub method: Option<String>,
    /// The request's query, without `?`
    #[arg(long, value_name = "Q")]
    pub query: Option<String>,
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Output,
}

impl Explain {
    /// The format, and what to ask the agent.
    pub fn request(self) -> (Output, ExplainRequest) {
        let Self { service, client, headers, cookies, path, method, query, output } = self;
        (output, ExplainRequest { service, client, headers, cookies, path, method, query, ..ExplainRequest::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_command_has_examples_or_a_word_of_warning() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_after_help().is_some(), "{}", command.get_name());
        }
    }

    #[test]
    fn wrong_usage_is_refused() {
        for line in [
            "splitter",
            "splitter weight checkout",
            "splitter weight checkout v1=50%",
            "splitter explain checkout --client nobody",
            "splitter agent",
            "splitter agent --policy p --xdp fast",
            "splitter agent --policy p --interface eth0:downlink",
            "splitter status -o yaml",
            "splitter status --sort size",
            "splitter flows --client web",
            "splitter flows --client 10.1.7.1/24",
            "splitter flows --backend web",
            "splitter flows --state open",
            "splitter flows --limit 0",
            "splitter top --iterations 0",
            "splitter trace --client 10.1.7.3/24",
            "splitter trace --count 0",
            "splitter trace --rate 0",
            "splitter rollout status --watch",
            "splitter rollout status --wait=5m",
        ] {
            let error = Cli::try_parse_from(line.split(' ')).err().unwrap_or_else(|| panic!("{line} is accepted"));
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
