//! What other users of the gateway can do to local control. As another user a test needs root; without it it says so
//! and passes over.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::harness::{Setup, World};

/// "nobody", who is neither root nor the user that runs the agent.
const USER: u32 = 65_534;
/// More than the agent serves.
const WATCHERS: usize = 48;

/// Kills what is left when the test ends.
struct Watcher(Child);

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Lets everybody reach the socket, as an administrator would who puts a user in the group `fwupdate`.
fn open_to_all(world: &World) {
    let socket = world.gateway.socket();
    let folders = socket.ancestors().skip(1).take_while(|folder| folder.starts_with(world.scratch()));
    for path in folders.chain([socket.as_path()]) {
        fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
    }
}

/// Asks, and reads until it is sent away. `fwupdatectl` has no command that only watches.
const CLIENT: &str = "
import socket, sys
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
client.sendall(sys.argv[2].encode() + b'\\n')
while client.recv(65536): pass
";

#[tokio::test]
async fn idle_watchers_of_another_user_do_not_lock_out_root() {
    let mut world = World::with(Setup::default()).await;
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root to be another user");
        return world.finish().await;
    }
    open_to_all(&world);
    let watch = || {
        let mut command = Command::new("python3");
        command.args(["-c", CLIENT]).arg(world.gateway.socket()).arg(r#"{"method":"watch"}"#);
        command.uid(USER).gid(USER).stdin(Stdio::null()).stderr(Stdio::null());
        Watcher(command.spawn().unwrap())
    };
    let mut watchers: Vec<Watcher> = (0..WATCHERS).map(|_| watch()).collect();
    // Those that lost their place to a newer one end; when all but the served ones did, all have been there.
    let deadline = tokio::time::Instant::now() + crate::harness::LIMIT;
    loop {
        let ended =
            watchers.iter_mut().map(|watcher| watcher.0.try_wait().unwrap()).filter(Option::is_some).count();
        if ended >= WATCHERS - 16 {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{ended} of {WATCHERS} gave way");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let status: Value = world.ctl_json(&["status"]).await;
    assert_eq!(status["firmwareStatus"], "standBy");
    let alive =
        watchers.iter_mut().map(|watcher| watcher.0.try_wait().unwrap()).filter(Option::is_none).count();
    assert_eq!(alive, 16, "so many of one user are served");
    world.finish().await;
}

/// Each examination takes a thread and a look at all media: members of the group may ask for it, and shall not keep
/// the agent from its work by it.
#[tokio::test]
async fn any_number_of_doctors_are_one_at_a_time() {
    let mut world = World::with(Setup::default()).await;
    let threads = format!("/proc/{}/task", world.gateway.agent_id().unwrap());
    let threads = || fs::read_dir(&threads).unwrap().count();
    let mut most = threads();
    for _ in 0..400 {
        let mut client = UnixStream::connect(world.gateway.socket()).unwrap();
        client.write_all(b"{\"method\":\"doctor\"}\n").unwrap();
        most = most.max(threads());
    }
    let status: Value = world.ctl_json(&["status"]).await;
    assert_eq!(status["firmwareStatus"], "standBy");
    most = most.max(threads());
    assert!(most < 8, "{most} threads");
    let doctor: Value = world.ctl_json(&["doctor"]).await;
    assert!(doctor["findings"].as_array().is_some_and(|findings| findings.len() > 5), "{doctor}");
    world.finish().await;
}
