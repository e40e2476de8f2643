//! A gateway that moves from one network to another in the middle of a download: real addresses on a real link
//! between two network namespaces; and servers with two addresses, one of them broken. Both need root. Without it, the
//! tests say so and pass over.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::bundle::testing as bundles;
use crate::config::Download;
use crate::reach::testing::{Swallower, with_two_addresses};
use crate::stage::testing::*;
use crate::stage::*;

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
    let told = runtime.block_on(update_from(&http, SERVER, server.port, image));
    // Every byte that was counted was used.
    assert_eq!(told.downloaded, told.expected_download);
}

async fn update_from(http: &Http, host: &str, port: u16, image: &[u8]) -> Progress {
    let url = format!("https://{host}:{port}/b.fwb").parse().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let slot = folder.path().join("slot");
    std::fs::write(&slot, vec![0xaa; image.len()]).unwrap();
    let progress = tokio::sync::watch::Sender::default();
    let update = async {
        let (meter, keys) = (std::sync::Arc::new(Meter::new(0, None, None)), bundles::trust(1));
        let bundle = opened(BundleSource::Http(url), http, meter, &keys, None).await?;
        let target = Target::acquire(&slot, &[])?;
        let index = bundle.index().await?;
        stage(&bundle, index, Staging::of(&target, &progress, &CancellationToken::new())).await
    };
    update.await.unwrap();
    assert!(std::fs::read(&slot).unwrap() == image);
    *progress.borrow()
}

/// A server of that name at its second address, what it serves, and a client that waits shortly for a silent one.
async fn at_the_second_address() -> (Server, Http, Vec<u8>) {
    let image = image(41, 2);
    let server = Server::start_at("127.0.0.2", parts(&image).join()).await;
    let (stall_timeout, final_after) = (Duration::from_millis(500), Duration::from_secs(60));
    let rules = Download { stall_timeout, final_after, ..download() };
    let http = server.http_with(&["localhost"], rules);
    (server, http, image)
}

#[test]
fn a_server_whose_first_address_swallows_packets_costs_moments() {
    with_two_addresses("localhost", || async {
        let (server, http, image) = at_the_second_address().await;
        let _swallower = Swallower::at(([127, 0, 0, 1], server.port).into()).await;
        update_from(&http, "localhost", server.port, &image).await;
    });
}

#[test]
fn a_node_that_takes_connections_and_is_of_no_use_is_tried_once() {
    with_two_addresses("localhost", || async {
        let (server, http, image) = at_the_second_address().await;
        for closes in [false, true] {
            let node = TcpListener::bind(("127.0.0.1", server.port)).await.unwrap();
            let tried = std::sync::Arc::new(AtomicUsize::new(0));
            let count = tried.clone();
            let broken = tokio::spawn(async move {
                let mut kept = Vec::new();
                while let Ok((stream, _)) = node.accept().await {
                    count.fetch_add(1, Ordering::SeqCst);
                    kept.extend((!closes).then_some(stream));
                }
            });
            update_from(&http, "localhost", server.port, &image).await;
            assert_eq!(tried.load(Ordering::SeqCst), 1, "closes: {closes}");
            broken.abort();
            broken.await.unwrap_err();
        }
    });
}

#[test]
fn a_node_whose_answers_are_of_no_use_is_tried_once() {
    with_two_addresses("localhost", || async {
        let (server, http, image) = at_the_second_address().await;
        let node = TcpListener::bind(("127.0.0.1", server.port)).await.unwrap();
        let node = server.another_at(node);
        let bad = [
            Act::Silent,
            Act::Status(404, String::new()),
            Act::Status(503, String::new()),
            Act::Page("<html>Please log in</html>".into()),
            Act::WrongRange,
            Act::Cut(100),
            Act::Stall(100),
            Act::Flip(100),
        ];
        for (act, tried) in bad.into_iter().zip(1..) {
            let shown = format!("{act:?}");
            node.script(move |_| act.clone());
            update_from(&http, "localhost", server.port, &image).await;
            assert_eq!(node.connections.load(Ordering::SeqCst), tried, "{shown}");
        }
    });
}
