//! The agent as a whole: wires the source, the control loop and the listeners together and ends them in order.
//!
//! Owns no logic of its own.

use crate::{
    admin, certificates,
    control::{self, Control, Hold, Loaded, Settings, Xdp},
    memory, privileges,
};
use anyhow::{Context, Result};
use splitter_policy::{
    model::Way,
    source::{
        dns::{Dns, System},
        follow::{Update, follow},
        resolve::remembered,
        watch::Watched,
    },
};
use std::{
    env,
    net::SocketAddr,
    os::{linux::net::SocketAddrExt, unix::net},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{Notify, mpsc},
    task::JoinSet,
    time::timeout,
};

/// Errors of a policy that the agent keeps and logs; `splitter check` shows all.
const ERRORS: usize = 50;

/// The first reading is waited for this long before maps are made, or taken over, without it.
const FIRST: Duration = Duration::from_secs(30);
const FIRST_WITH_MAPS: Duration = Duration::from_secs(5);

/// The settings of `splitter agent`.
pub struct Options {
    pub policy: PathBuf,
    /// DNS servers for names of backends; those of the host when there is none.
    pub resolvers: Vec<SocketAddr>,
    pub interfaces: Vec<String>,
    pub xdp: Xdp,
    pub admin: PathBuf,
    pub metrics: SocketAddr,
    pub state: PathBuf,
    pub pins: Option<PathBuf>,
    pub max_flows: Option<u32>,
    pub path: Way,
    pub timestamps: bool,
    pub debug_programs: bool,
    pub keep_capabilities: bool,
}

/// What has to be done before there are threads.
pub fn prepare(options: &Options) -> Result<()> {
    memory::tune();
    if options.keep_capabilities {
        return Ok(());
    }
    // Mounting a bpffs takes more than the agent keeps.
    let pins = control::pins(options.pins.as_deref())?;
    let mut kept = privileges::NEEDED.to_vec();
    if pins.starts_with("/proc/1/root") {
        kept.push(privileges::SYS_PTRACE);
    }
    if privileges::keep_only(&kept).context("cannot give up capabilities (--keep-capabilities leaves them)")? {
        tracing::info!("of root's capabilities {} are kept, also for hooks and commands of rollouts", privileges::names(&kept));
    }
    Ok(())
}

/// Runs until SIGTERM or SIGINT; SIGHUP has the policy read again. The kernel goes on splitting afterwards.
pub async fn run(options: Options) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    // Taken, so that they do not end the agent: they mean nothing to it.
    let _ignored = [signal(SignalKind::user_defined1())?, signal(SignalKind::user_defined2())?];
    // All before the kernel is touched: a second agent stops here.
    let hold = tokio::select! {
        hold = Hold::take(options.pins.as_deref(), &options.state) => hold?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let listener = admin::Listener::bind(&options.admin).await?;
    let metrics = TcpListener::bind(options.metrics)
        .await
        .with_context(|| format!("cannot listen on {} for metrics: name another address with --metrics", options.metrics))?;
    let (sender, mut updates) = mpsc::channel(1);
    let mut tasks = JoinSet::new();
    let [reload, ask] = [Arc::new(Notify::new()), Arc::new(Notify::new())];
    // What cannot be read is said by the control loop.
    let before = control::last_policy(&options.state).ok().flatten().unwrap_or_default();
    let dns = Dns::new(System::new(options.resolvers), remembered(&before), ask.clone());
    tasks.spawn(follow(Watched::start(options.policy.clone(), reload.clone()), dns, sender));
    drop(before);
    // Maps are made as large as the policy needs, and maps that are there are not brought back to an older one.
    let patience = if control::has_maps(options.pins.as_deref()) { FIRST_WITH_MAPS } else { FIRST };
    let mut read = tokio::select! {
        update = timeout(patience, updates.recv()) => update.ok().flatten(),
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let mut vetting = Vetting::default();
    read = read.map(|update| vetting.vet(update));
    let policy = read.as_ref().and_then(|update| update.policy.as_ref()).map(|policy| Arc::new(policy.services.clone()));
    let settings = Settings {
        interfaces: options.interfaces,
        xdp: options.xdp,
        pins: options.pins,
        state: options.state,
        max_flows: options.max_flows,
        source: options.policy.display().to_string(),
        policy,
        path: options.path,
        timestamps: options.timestamps,
        debug_programs: options.debug_programs,
    };
    let (control, mut actor) = Control::start_on(settings, hold).await?;
    tasks.spawn(admin::serve_admin(listener, control.clone()));
    tasks.spawn(admin::serve_metrics(metrics, control.clone()));
    let (mut first, mut log) = (true, Log::default());
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {
                tracing::info!("SIGHUP: the policy is read again");
                reload.notify_one();
                ask.notify_one();
            }
            ended = &mut actor => {
                ended.context("the control loop failed")?;
                anyhow::bail!("the control loop ended by itself, the log says why; restart the agent");
            }
            update = next(&mut read, &mut updates, &mut vetting) => {
                let update = update.context("the policy's watcher ended by itself; restart the agent")?;
                control.load(log.loaded(update)).await;
                memory::release();
                if std::mem::take(&mut first) {
                    notify("READY=1");
                    tracing::info!(version = env!("CARGO_PKG_VERSION"), admin = %options.admin.display(), "ready");
                }
            }
        }
    }
    tracing::info!("stopping; the kernel goes on splitting, `splitter detach` ends that");
    notify("STOPPING=1");
    // No request is accepted any more when the last state is written.
    tasks.shutdown().await;
    control.shutdown().await;
    Ok(())
}

/// What was read already, then what is read.
async fn next(read: &mut Option<Update>, updates: &mut mpsc::Receiver<Update>, vetting: &mut Vetting) -> Option<Update> {
    match read.take() {
        Some(update) => Some(update),
        None => updates.recv().await.map(|update| vetting.vet(update)),
    }
}

/// Whether a policy's certificates can be served; one whose cannot is refused as a whole.
#[derive(Default)]
struct Vetting {
    refused: bool,
}

impl Vetting {
    /// New addresses change nothing about certificates that were found good.
    fn vet(&mut self, mut update: Update) -> Update {
        let Some(policy) = update.policy.as_ref().filter(|_| update.read || self.refused) else { return update };
        let findings = certificates::findings(policy);
        self.refused = !findings.is_empty();
        if self.refused {
            update.policy = None;
            update.errors.extend(findings);
        }
        update
    }
}

/// What the log has said of lookups.
#[derive(Default)]
struct Log {
    findings: Vec<String>,
}

impl Log {
    /// Logs what the sources say, each finding of lookups once, and shortens it for the status.
    fn loaded(&mut self, update: Update) -> Loaded {
        let Update { policy, errors, warnings, findings, failing, read } = update;
        let [errors, mut warnings] = [errors, warnings].map(|found| shorten(found.iter().map(ToString::to_string).collect()));
        if read {
            warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            errors.iter().for_each(|error| tracing::error!("{error}"));
            match &policy {
                _ if !errors.is_empty() => tracing::error!("policy rejected; the last good one stays"),
                Some(policy) => tracing::info!(services = policy.services.len(), "policy read"),
                None => {}
            }
        } else if policy.is_some() {
            tracing::info!("addresses of backends have changed");
        }
        findings.iter().filter(|finding| !self.findings.contains(finding)).for_each(|finding| tracing::warn!("{finding}"));
        warnings.extend(shorten(findings.clone()));
        warnings.shrink_to_fit();
        self.findings = findings;
        Loaded { policy, errors, warnings, failing_lookups: failing, read }
    }
}

fn shorten(mut findings: Vec<String>) -> Vec<String> {
    let more = findings.len().saturating_sub(ERRORS);
    if more > 0 {
        findings.truncate(ERRORS);
        findings.push(format!("and {more} more: `splitter check` shows all"));
    }
    findings
}

/// Tells systemd (`Type=notify`), when it listens: sd_notify(3).
fn notify(state: &str) {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else { return };
    let address = match path.to_str().and_then(|p| p.strip_prefix('@')) {
        Some(name) => net::SocketAddr::from_abstract_name(name),
        None => net::SocketAddr::from_pathname(&path),
    };
    let sent = address.and_then(|address| net::UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}
