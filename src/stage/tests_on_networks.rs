//! A gateway that moves from one network to another in the middle of a download: real addresses on a real link
//! between two network namespaces, which need root. Without it, the test says so and passes over.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;
use tokio_util::sync::CancellationToken;

use super::testing::*;
use super::*;
use crate::bundle::testing as bundles;
use crate::config::Download;

const SERVER: &str = "10.77.0.1";
/// Buffers of each connection on either side, bytes: what a link of a few Mbit/s needs, and what a move may lose.
const BUFFERS: [(&str, &str); 2] = [("tcp_wmem", "4096 8192 16384"), ("tcp_rmem", "4096 32768 65536")];

/// Runs a command in the network namespace of a thread of ours.
fn within(thread: i32, command: &str) -> String {
    let namespace = format!("--net=/proc/{}/task/{thread}/ns/net", std::process::id());
    let done = Command::new("nsenter").args([&namespace, "sh", "-ec", command]).output().unwrap();
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command}: {error}");
    String::from_utf8(done.stdout).unwrap()
}

/// A thread in a network namespace of its own, which begins to work when the links are there.
struct Namespace<T> {
    thread: i32,
    go: mpsc::Sender<()>,
    work: std::thread::JoinHandle<T>,
}

impl<T: Send + 'static> Namespace<T> {
    fn new(work: impl FnOnce(&tokio::runtime::Runtime) -> T + Send + 'static) -> Namespace<T> {
        let (ready, is_ready) = mpsc::channel();
        let (go, may_go) = mpsc::channel();
        let work = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            ready.send(gettid().as_raw()).unwrap();
            may_go.recv().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            work(&runtime)
        });
        Namespace { thread: is_ready.recv().unwrap(), go, work }
    }
}

/// Bytes that came over the link, all headers included.
fn received(client: i32) -> u64 {
    within(client, "ip -s -j link show c0 | sed -E 's/.*\"rx\":\\{\"bytes\":([0-9]+).*/\\1/'")
        .trim()
        .parse()
        .unwrap()
}

#[test]
fn a_download_goes_on_from_another_address() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: network namespaces need root");
        return;
    }
    let mut noise = vec![0; 24 << 20];
    fastrand::Rng::with_seed(90).fill(&mut noise);
    let (file, image) = (parts(&noise).join(), noise);
    let (serving, server) = mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let far = Namespace::new(move |runtime| {
        runtime.block_on(async {
            serving.send(Server::start_at(SERVER, file).await).unwrap();
            stopped.await.ok();
        });
    });
    let (report, reports) = mpsc::channel();
    let (again, next) = mpsc::channel::<()>();
    let near = Namespace::new(move |runtime| {
        let server = server.recv().unwrap();
        report.send(server.served.clone()).unwrap();
        while next.recv().is_ok() {
            one_update(runtime, &server, &image);
            report.send(server.served.clone()).unwrap();
        }
    });

    let (client, host) = (near.thread, far.thread);
    let link = format!(
        "ip link set lo up; ip link add c0 type veth peer name s0; ip link set s0 netns {host}; \
         ip addr add 10.77.0.2/24 dev c0; ip link set c0 up"
    );
    within(client, &link);
    within(host, &format!("ip addr add {SERVER}/24 dev s0; ip link set s0 up"));
    for (name, sizes) in BUFFERS {
        for side in [client, host] {
            within(side, &format!("echo '{sizes}' > /proc/sys/net/ipv4/{name}"));
        }
    }
    far.go.send(()).unwrap();
    near.go.send(()).unwrap();
    let served = reports.recv().unwrap();

    let cost = || {
        let before = received(client);
        again.send(()).unwrap();
        reports.recv().unwrap();
        received(client) - before
    };
    let undisturbed = cost();
    // Half way, when several ranges are on their way: another network, and the old address is gone.
    let half = served.count() + served.count() / 2;
    let moved = std::sync::Arc::new(AtomicBool::new(false));
    let did = moved.clone();
    served.script(move |request| {
        if request.number >= half && !did.swap(true, Ordering::SeqCst) {
            within(client, "ip addr del 10.77.0.2/24 dev c0; ip addr add 10.77.0.3/24 dev c0");
        }
        Act::Serve
    });
    let disturbed = cost();
    assert!(moved.load(Ordering::SeqCst));
    println!("{undisturbed} bytes on the wire undisturbed, {disturbed} with a move");
    assert!(disturbed <= undisturbed + undisturbed / 50, "{disturbed} instead of {undisturbed}");
    drop(again);
    stop.send(()).unwrap();
    near.work.join().unwrap();
    far.work.join().unwrap();
}

/// One whole update. Nothing but noticing the move ends the silence within the hour.
fn one_update(runtime: &tokio::runtime::Runtime, server: &Server, image: &[u8]) {
    let hour = Duration::from_secs(3600);
    let mut http =
        server.http_with(&[SERVER], Download { patience: 2 * hour, stall_timeout: hour, ..download() });
    http.look = Duration::from_millis(50);
    let url = format!("https://{SERVER}:{}/b.fwb", server.port).parse().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let slot = folder.path().join("slot");
    std::fs::write(&slot, vec![0xaa; image.len()]).unwrap();
    let progress = tokio::sync::watch::Sender::default();
    let update = async {
        let (meter, keys) = (std::sync::Arc::new(Meter::new(0, None, None)), bundles::trust(1));
        let bundle = open(Source::Http(url), &http, meter, &keys, 1, None, &Workspace::default()).await?;
        let target = Target::acquire(&slot, &[])?;
        let index = bundle.index().await?;
        stage(&bundle, index, &target, None, None, &progress, &CancellationToken::new()).await
    };
    runtime.block_on(update).unwrap();
    assert!(std::fs::read(&slot).unwrap() == image);
    // Every byte that was counted was used.
    let told = *progress.borrow();
    assert_eq!(told.downloaded, told.expected_download);
}
