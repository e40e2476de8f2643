//! Installs one bundle into one slot with the library that `fwupdated` runs, on the same kind of runtime, and
//! prints what it cost as one line of JSON. For `make bench`; no part of any package.
//!
//!     install BUNDLE-OR-URL KEY.pem SLOT [CA.pem or -] [SEED or -] [MAPS]
//!
//! The working folder is to the installer what the state folder is to the daemon. MAPS is a folder with the chunk maps
//! of both slots, `chunks.booted` and `chunks.target`, as far as they are there.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fwupdate::config::{Download, Proxy, Roots};
use fwupdate::manifest::TrustedKeys;
use fwupdate::stage::{
    self, Booted, BundleSource, Http, Maps, Meter, Opening, Progress, Staging, Target, Workspace,
};
use nix::sys::resource::{UsageWho, getrusage};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

fn main() -> Result<()> {
    fwupdate::memory::stay_small();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(install(&arguments))
}

async fn install(arguments: &[String]) -> Result<()> {
    let [bundle, key, slot, rest @ ..] = arguments else { anyhow::bail!("see the head of install.rs") };
    let given = |n: usize| rest.get(n).filter(|path| *path != "-").map(|path| Path::new(path.as_str()));
    let [ca, seed, maps] = [0, 1, 2].map(given);
    let maps = maps.map(|folder| {
        let [booted, target] = ["chunks.booted", "chunks.target"].map(|name| folder.join(name));
        Maps { booted, target }
    });
    let mut keys = TrustedKeys::default();
    keys.add_pem(&std::fs::read_to_string(key)?)?;
    let start = Instant::now();
    let trusted = Roots::with(ca.map(Path::to_owned));
    let tls = fwupdate::tls::client_config(&trusted, None, &fwupdate::clock::Clock::default())?;
    let hour = Duration::from_secs(3600);
    let stall_timeout = Duration::from_secs(60);
    let download = Download {
        patience: hour,
        stall_timeout,
        min_rate: 1,
        final_after: stall_timeout,
        rate_limit: None,
        max_bytes: None,
        windows: Vec::new(),
        proxy: Proxy::default(),
    };
    let http = Http::new(tls, &["127.0.0.1".into(), "localhost".into()], download);
    let location = match bundle.starts_with("https:") {
        true => BundleSource::Http(bundle.parse()?),
        false => BundleSource::File(bundle.into()),
    };
    let workspace = Workspace::on_disk(&std::env::current_dir()?);
    let (http, meter, keys, workspace) = (&http, Arc::new(Meter::new(0, None, None)), &keys, &workspace);
    let opening = Opening { location, http, meter: meter.clone(), keys, required: 1, pin: None, workspace };
    let bundle = stage::open(opening).await?;
    let target = Target::acquire(Path::new(slot), &[])?;
    let index = bundle.index().await?;
    let (progress, seen) = watch::channel(Progress::default());
    let cancel = CancellationToken::new();
    let trace = std::env::var_os("TRACE").is_some();
    let steps = tokio::spawn(follow(seen.clone(), start, trace));
    let (seed, maps) = (seed.map(Booted::from), maps.as_ref());
    stage::stage(&bundle, index, Staging { seed, maps, ..Staging::of(&target, &progress, &cancel) }).await?;
    drop(progress);
    steps.await?;
    let (wall, usage) = (start.elapsed().as_secs_f64(), getrusage(UsageWho::RUSAGE_SELF)?);
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    let cpu = seconds(usage.user_time()) + seconds(usage.system_time());
    let done = *seen.borrow();
    println!(
        "{{\"seconds\":{wall:.3},\"cpu\":{cpu:.3},\"peakKiB\":{},\"fetched\":{},\"expected\":{},\"reused\":{},\"written\":{}}}",
        usage.max_rss(),
        meter.spent(),
        done.expected_download,
        done.reused,
        written().context("/proc/self/io")?,
    );
    Ok(())
}

/// With TRACE set, tells on stderr when each step began.
async fn follow(mut seen: watch::Receiver<Progress>, start: Instant, trace: bool) {
    let mut step = None;
    while seen.changed().await.is_ok() {
        let now = seen.borrow_and_update().step;
        if trace && step != Some(now) {
            eprintln!("{:.3} s {now:?}", start.elapsed().as_secs_f64());
        }
        step = Some(now);
    }
}

/// Bytes that this process caused to be written to the medium.
fn written() -> Option<u64> {
    let io = std::fs::read_to_string("/proc/self/io").ok()?;
    io.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok())
}
