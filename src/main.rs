//! The process: parse, start logging, choose a subcommand, exit code.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::routing::get;
use peili::app::{self, App};
use peili::config::{
    self, Bootstrap, Cleanup, CleanupWait, Command, CommandLine, ListenAddr, Store,
};
use peili::membership::Members;
use peili::node_token::NodeToken;
use peili::oci::filter::Filter;
use peili::routing::bootstrap::Domain;
use peili::server::Server;
use peili::shutdown::Shutdown;
use peili::tls::CertDir;
use peili::{basic_auth, commands, doctor, mirror, routing, telemetry};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, warn};

/// What a hundred peers tell at once, or a crowd takes, is given back when it is over. With the C library's allocator it stayed
/// with the process for ever, in as many heaps as there had been threads (docs/performance.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let CommandLine { log, command } = match config::parse(std::env::args_os()) {
        Ok(command_line) => command_line,
        Err(refusal) => return refusal.print(),
    };
    telemetry::init(&log);
    let mut out = io::stdout();
    let done = match command {
        Command::Registry(config) => return daemon(*config),
        Command::Doctor(config) => return doctor(*config),
        Command::Configuration(config) => commands::configuration(&config, &mut out),
        Command::Cleanup(Cleanup {
            containerd_registry_config_path: directory,
            release,
            addr,
        }) => match (commands::cleanup(&directory, &release, &mut out), addr) {
            (Ok(()), Some(addr)) => return stay_cleaned_up(addr),
            (done, _) => done,
        },
        Command::CleanupWait(config) => return wait(&config),
        Command::Pull(config) => return asked(commands::try_pull::run(&config, &mut out)),
        Command::Peers(config) => return asked(commands::ask::peers(&config, &mut out)),
        Command::Find(config) => return asked(commands::ask::find(&config, &mut out)),
        Command::Version(format) => commands::version(format, &mut out),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => failed(&e),
    }
}

/// Says on stderr, to a person, what went wrong; false: it went, and the answer is no.
fn asked(answered: Result<bool>) -> ExitCode {
    match answered {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("peili: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn failed(error: &commands::Error) -> ExitCode {
    error!(%error, "failed");
    ExitCode::from(error.exit_code())
}

fn daemon(config: config::Registry) -> ExitCode {
    // Half a Secret is half a lock: nothing is served before it is whole.
    let secret = match basic_auth::Secret::load(&config.basic_auth_dir) {
        Ok(secret) => secret,
        Err(e) => return failed(&commands::Error::from(e)),
    };
    let members = match config.cluster_secret_file.as_deref().map(Members::load) {
        None => None,
        Some(Ok(members)) => Some(Arc::new(members)),
        Some(Err(e)) => return failed(&commands::Error::from(e)),
    };
    raise_descriptor_limit();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(e) => return exit_code(Err(e).context("runtime")),
    };
    let served = runtime.block_on(async {
        let stop = terminated().context("signal handlers")?;
        App::bind(app_config(config, secret, members))
            .await?
            .run(stop)
            .await
    });
    // A read of a disk that hangs cannot be taken back, and must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    exit_code(served)
}

/// Everything that it asks has a limit; a thread that a disk holds is left behind.
fn doctor(config: config::Doctor) -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(e) => return exit_code(Err(e).context("runtime")),
    };
    let metrics = config.registry.metrics_addr.from_here();
    let examined = runtime.block_on(async {
        let live = doctor::ask(&metrics).await;
        doctor::examine(&doctor_config(&config.registry), live).await
    });
    runtime.shutdown_background();
    match commands::doctor(&examined, config.format, &mut io::stdout()) {
        Ok(code) => ExitCode::from(code),
        Err(e) => failed(&e),
    }
}

/// As many as are allowed: some container runtimes leave a soft limit of 1024, and each body takes two.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(e) = setrlimit(Resource::Nofile, limit) {
        warn!(error = %e, "the limit of open files stays as it is");
    }
}

/// Answers `/readyz` until the end: the uninstalling hook waits for that of every node.
#[tokio::main(flavor = "current_thread")]
async fn stay_cleaned_up(addr: ListenAddr) -> ExitCode {
    let served = async {
        let stop = terminated().context("signal handlers")?;
        let server = Server::bind(&addr.candidates()).await.context("--addr")?;
        let routes = Router::new().route("/readyz", get(|| async { "cleaned up\n" }));
        let shutdown = Shutdown::new();
        shutdown.spawn(server.run(routes, shutdown.clone()));
        stop.await;
        shutdown.finish(Duration::from_secs(1)).await;
        Ok(())
    };
    exit_code(served.await)
}

/// Waits for the uninstalling hook of every node.
#[tokio::main(flavor = "current_thread")]
async fn wait(config: &CleanupWait) -> ExitCode {
    let waited = async {
        let stop = terminated().context("signal handlers")?;
        Ok(commands::cleanup_wait::run(config, stop, &mut io::stdout()).await)
    };
    match waited.await {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(e)) => {
            error!(error = %e, "failed");
            ExitCode::from(e.exit_code())
        }
        Err(e) => exit_code(Err(e)),
    }
}

fn exit_code(ended: Result<()>) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            error!(error = format!("{e:#}"), "failed");
            ExitCode::FAILURE
        }
    }
}

/// Returns when the process is asked to end. The handlers are there from the first moment, not from the first poll.
fn terminated() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// The parts' configurations out of the command line's.
fn app_config(
    config: config::Registry,
    basic_auth: Option<basic_auth::Secret>,
    members: Option<Arc<Members>>,
) -> app::Config {
    let bootstrap = bootstrap(&config);
    let doctor = doctor_config(&config);
    let token_dir = config.data_dir.clone();
    // A registry port that is open to strangers would make the swarm's lock worth little.
    let requires_token = config.require_node_token || members.is_some();
    let advertise = match config.advertise_addrs {
        none if none.is_empty() => config::default_route_addrs(),
        some => some,
    };
    app::Config {
        registry: config.registry_addr.candidates(),
        admin: config.metrics_addr.candidates(),
        debug_web: config.debug_web_enabled,
        introduction: config.http_bootstrap_addr.map(|addr| app::Introduction {
            listen: addr.candidates(),
            certificates: config.http_bootstrap_cert_dir.map(CertDir::new),
        }),
        store: config.store,
        routing: routing::kad::Config {
            listen: config.router_addr.candidates(),
            advertise,
            registry_port: config.registry_addr.port(),
            data_dir: config.data_dir,
            bootstrap: Some(bootstrap),
            resolve_timeout: config.mirror_resolve_timeout,
            zone: config.zone.clone(),
            members,
        },
        mirror: mirror::Config {
            zone: config.zone.as_deref().map(Arc::from),
            retries: config.mirror_resolve_retries as usize,
        },
        in_flight_sharing: config.in_flight_sharing,
        filter: Filter::new(
            config
                .mirrored_registries
                .iter()
                .map(|registry| registry.host().map(str::to_string))
                .collect(),
            config.registry_filters,
        ),
        token: token_dir.map(|dir| NodeToken::new(&dir, requires_token)),
        basic_auth,
        max_uploads: config.max_uploads,
        grace_period: config.shutdown_grace_period,
        doctor: Some(doctor),
    }
}

/// How the first peers are found.
fn bootstrap(config: &config::Registry) -> routing::bootstrap::Bootstrap {
    match &config.bootstrap {
        Bootstrap::Dns { domains } => {
            // Peers are found by address alone: all routers of a cluster listen at one port.
            let usual = config.router_addr.port();
            let domains = domains.iter().map(|(name, port)| Domain {
                name: name.clone(),
                port: port.unwrap_or(usual),
            });
            routing::bootstrap::Bootstrap::Dns(domains.collect())
        }
        Bootstrap::Http(http) => routing::bootstrap::Bootstrap::Http(http.clone()),
        Bootstrap::Static { peers } => routing::bootstrap::Bootstrap::Static(peers.clone()),
    }
}

/// What the doctor looks at: all that the daemon has been told.
fn doctor_config(config: &config::Registry) -> doctor::Config {
    let named = config.mirrored_registries.iter();
    doctor::Config {
        containerd: match &config.store {
            Store::Containerd(config) => Some(config.clone()),
            Store::OciLayout(_) => None,
        },
        certs_d: config.containerd_registry_config_path.clone(),
        data_dir: config.data_dir.clone(),
        requires_token: config.require_node_token || config.cluster_secret_file.is_some(),
        basic_auth_dir: config.basic_auth_dir.clone(),
        cluster_secret_file: config.cluster_secret_file.clone(),
        registries: named
            .filter(|registry| registry.host().is_some())
            .map(|registry| registry.directory().to_string())
            .collect(),
        bootstrap: bootstrap(config),
        node_ips: config.node_ips.clone(),
    }
}
