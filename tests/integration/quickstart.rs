//! docs/quickstart-azure.md is a script: its blocks run in their order, from the empty account to `completed`, and
//! each command of `az` on any page is judged by Microsoft's own parser.
//!
//! A block says whose shell it is typed into (`sh desk`, `sh gateway`). What is no program here has a stand-in, each
//! with its reason in `tests/interop/az/stand-in.sh`; whatever is neither ends the script.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use fwupdate_hub::dps::{Attestation, Enrollment};
use fwupdate_hub::firmware::{Outcome, Slot};
use fwupdate_hub::gateway::Bootloader;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::pipe;
use tokio::process::Command;

use crate::blobs::Blobs;
use crate::harness::{LIMIT, Setup, World, run};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const DESK: [&str; 8] = ["az", "make", "sudo", "apt", "scp", "ssh", "python3", "fwupdate-cloud"];
const GATEWAY: [&str; 4] = ["apt", "systemctl", "fwupdated", "fwupdatectl"];

/// A fenced block: what stands behind the fence, and its lines.
struct Block {
    info: String,
    text: String,
}

fn blocks(page: &str) -> Vec<Block> {
    let text = fs::read_to_string(Path::new(ROOT).join("docs").join(page)).unwrap();
    let mut parts = text.split("\n```").skip(1);
    let mut blocks = Vec::new();
    while let (Some(block), Some(_)) = (parts.next(), parts.next()) {
        let (info, text) = block.split_once('\n').unwrap();
        blocks.push(Block { info: info.to_owned(), text: format!("{text}\n") });
    }
    blocks
}

/// The commands of `az` in a text, each a line, without what it is piped into.
fn az_commands(text: &str) -> Vec<String> {
    let joined = text.replace("\\\n", " ");
    let begin =
        |line: &str| line.find("az ").filter(|at| !line[..*at].ends_with(|c: char| c.is_alphanumeric()));
    let commands = joined.lines().filter_map(|line| begin(line).map(|at| line[at..].to_owned()));
    commands.map(|command| command.split(" | ").next().unwrap().to_owned()).collect()
}

/// Those that stand within a sentence, with options.
fn az_in_prose(page: &str) -> Vec<String> {
    let text = fs::read_to_string(Path::new(ROOT).join("docs").join(page)).unwrap();
    let spans = text.split('`').filter(|span| span.starts_with("az ") && span.contains(" --"));
    spans.map(str::to_owned).collect()
}

/// Its name: the words before the first option.
fn name(command: &str) -> String {
    let words = command.split_whitespace().skip(1);
    words.take_while(|word| !word.starts_with('-')).collect::<Vec<_>>().join(" ")
}

/// What a page's script needs of the world, in the environment of its commands.
struct Script {
    dir: PathBuf,
    variables: Vec<(&'static str, String)>,
}

impl Script {
    fn new(dir: &Path) -> Script {
        // `az`, and the SDK of the page's program.
        for made in ["tests/interop/az/venv.sh", "tests/interop/venv.sh"] {
            run(&mut std::process::Command::new(Path::new(ROOT).join(made)));
        }
        let dir = dir.to_owned();
        let path = |name: &str| dir.join(name).display().to_string();
        let variables = vec![
            ("HOME", path("home")),
            ("AZURE_CONFIG_DIR", path("az")),
            ("AZURE_CORE_COLLECT_TELEMETRY", "no".into()),
            ("AZURE_EXTENSION_USE_DYNAMIC_INSTALL", "no".into()),
            ("PAGE_LOG", path("log")),
            ("PAGE_SCRATCH", dir.display().to_string()),
            ("PAGE_REPOSITORY", ROOT.into()),
        ];
        fs::create_dir(dir.join("home")).unwrap();
        for (place, names) in [("desk", DESK.as_slice()), ("gateway-bin", GATEWAY.as_slice())] {
            fs::create_dir(dir.join(place)).unwrap();
            for name in names {
                symlink(Path::new(ROOT).join("tests/interop/az/stand-in.sh"), dir.join(place).join(name))
                    .unwrap();
            }
        }
        Script { dir, variables }
    }

    fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.variables.push((name, value.into()));
    }

    /// A command in bash, with the stand-ins of the desk before all other programs.
    fn bash(&self, script: &str) -> Command {
        let mut command = Command::new("bash");
        command.args(["-c", script]).current_dir(ROOT).envs(self.variables.iter().cloned());
        command.env(
            "PATH",
            format!("{}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", self.dir.join("desk").display()),
        );
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// The names of the commands that `az` was called with.
    fn called(&self) -> BTreeSet<String> {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

/// Where the page's paths are, and Azure's hosts, as a script for sed.
fn paths(world: &World, blobs: &Blobs) -> String {
    let dir = world.gateway.dir().display();
    let port = world.hub.mqtt_addr().port();
    let host = blobs.host();
    let rules = [
        // The authority of the tests, and the keys' folder, which the page leaves at its default.
        format!(r#"s|^\[trust\]$|[trust]\nkeys = "{dir}/keys"|"#),
        format!(r#"s|"[a-z0-9]*\.blob\.core\.windows\.net"|"{host}"|"#),
        format!(r#"s|^\[cloud.dps\]$|[cloud.dps]\nendpoint = "localhost"\nport = {port}|"#),
        format!("s|/etc/fwupdate/keys|{dir}/keys|g"),
        format!("s|/etc/fwupdate|{dir}/fwupdate|g"),
        format!("s|/var/lib/fwupdate|{dir}/state|g"),
        format!("s|PARTLABEL=rootfs-|{dir}/slot-|g"),
        format!("s|/boot/efi/grubenv|{dir}/grubenv|g"),
    ];
    rules.join("\n") + "\n"
}

/// What the simulated machine needs beyond the page's settings, as drop-ins.
fn settle(world: &World) {
    let file = world.gateway.settings_file();
    let own: String = fs::read_to_string(&file).unwrap();
    let mut table: toml::Table = own.parse().unwrap();
    for of_the_page in ["compatible", "trust", "slots", "bootloader"] {
        table.remove(of_the_page);
    }
    world.gateway.configure("90-machine", &table.to_string()).unwrap();
    fs::remove_file(file).unwrap();
}

/// All blocks as one script. Those of the gateway run in a shell with the gateway's programs alone.
fn script(page: &[Block], sed: &str) -> String {
    let mut script = String::from("set -Eeuo pipefail\ntrap 'echo \"THE PAGE: $BASH_COMMAND\" >&2' ERR\n");
    for block in page {
        match block.info.as_str() {
            // A slot of the simulated gateway is small.
            "sh desk" => script.push_str(&block.text.replace("SIZE=2G", "SIZE=3M")),
            "sh gateway" => {
                let mapped = mapped(&block.text, sed);
                script.push_str(&format!(
                    "(\nPATH=$PAGE_SCRATCH/gateway-bin:/usr/bin:/bin\ncd \"$PAGE_SCRATCH\"\n{mapped})\n"
                ));
            }
            "json" => {}
            other => panic!(
                "```{other}: a block of commands says whose shell it is for: `sh desk` or `sh gateway`"
            ),
        }
    }
    script
}

fn mapped(text: &str, sed: &str) -> String {
    let output = run(std::process::Command::new("bash").args(["-c", "sed \"$0\" <<<\"$1\"", sed, text]));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs the script to its end, while the gateway lives, restarts and reboots as it is asked to.
async fn beside(world: &mut World, mut command: Command) -> Output {
    let fifo = |name: &str| {
        let path = world.scratch().join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path
    };
    let mut both = pipe::OpenOptions::new();
    both.read_write(true);
    let asks = both.open_receiver(fifo("asks")).unwrap();
    let mut answers = both.open_sender(fifo("answers")).unwrap();
    let mut asks = BufReader::new(asks).lines();
    let running = command.output();
    tokio::pin!(running);
    loop {
        let on = world.gateway.agent_id().is_some();
        tokio::select! {
            output = &mut running => return output.unwrap(),
            asked = world.gateway.reboot_requested(), if on => {
                asked.unwrap();
                world.gateway.reboot().await.unwrap();
            }
            asked = asks.next_line() => {
                assert_eq!(asked.unwrap().as_deref(), Some("restart"));
                match on {
                    true => world.gateway.restart_agent().await.unwrap(),
                    false => assert!(matches!(world.gateway.power_on(), Ok(Outcome::Booted { .. }))),
                }
                world.until_shown_at_all(&["status"]).await;
                answers.write_all(b"done\n").await.unwrap();
            }
        }
    }
}

/// The world in which the page's commands find what Azure would have.
fn stage(world: &World, blobs: &Blobs) -> Script {
    settle(world);
    let mut script = Script::new(world.scratch());
    let keys = Attestation::new_keys();
    let Attestation::SymmetricKey { primary_key, .. } = &keys else { panic!("no key") };
    script.set("PAGE_GROUP_KEY", primary_key);
    world.hub.enroll(&Enrollment::group("acme-gw1", keys.clone())).unwrap();
    script.set("PAGE_ID_SCOPE", world.hub.id_scope());
    script.set("PAGE_SERVICE", world.hub.service_connection_string());
    script.set("REQUESTS_CA_BUNDLE", world.hub.ca_path().display().to_string());
    script.set("PAGE_BLOBS", blobs.connection_string());
    script.set("PAGE_GATEWAY", "root@192.0.2.10");
    script.set("PAGE_SETTINGS", world.gateway.dir().join("fwupdate.toml").display().to_string());
    script.set("PAGE_SOCKET", world.gateway.socket().display().to_string());
    let programs = Path::new(env!("CARGO_BIN_EXE_fwupdate-bundle")).parent().unwrap();
    script.set("PAGE_PROGRAMS", programs.display().to_string());
    symlink(env!("CARGO_BIN_EXE_fwupdate-bundle"), script.dir.join("desk/fwupdate-bundle")).unwrap();
    fs::write(script.dir.join("paths.sed"), paths(world, blobs)).unwrap();
    script
}

#[tokio::test]
async fn the_page_leads_from_an_empty_account_to_completed() {
    let (bootloader, device) = (Bootloader::Grub, "gw-001");
    let setup = Setup { device, registered: false, on: false, bootloader, ..Setup::default() };
    let mut world = World::with(setup).await;
    let blobs = Blobs::start(&world).await;
    let script = stage(&world, &blobs);
    let page = blocks("quickstart-azure.md");
    let command = script.bash(&self::script(&page, &paths(&world, &blobs)));
    let output =
        tokio::time::timeout(LIMIT * 10, beside(&mut world, command)).await.expect("the page has no end");
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{said}\n{}", world.gateway.log());

    // Three updates, each as its step says, and then the gateway that nobody made a device for.
    assert!(
        said.contains(r#""status": "completed""#) && said.contains("committed: 1.5.0 -> 1.6.0"),
        "{said}"
    );
    assert!(said.contains("firmwareStatus=completed"), "{said}");
    assert_eq!(world.twin()["fwupdate"]["last"]["toVersion"], "1.7.0");
    assert!(world.booted() == Slot::B && world.hub.wait_connected("gw-002", true, LIMIT).await);
    let commands = page.iter().flat_map(|block| az_commands(&block.text));
    let asked: BTreeSet<String> = commands.map(|line| name(&line)).collect();
    let called = script.called();
    assert!(asked.is_subset(&called), "never called: {:?}", asked.difference(&called));
    world.finish_disturbed().await;
}

#[tokio::test]
async fn what_any_page_asks_of_az_is_understood_by_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut script = Script::new(dir.path());
    script.set("PAGE_PARSE_ONLY", "yes");
    let mut seen = 0;
    for entry in fs::read_dir(Path::new(ROOT).join("docs")).unwrap() {
        let page = entry.unwrap().file_name().into_string().unwrap();
        if !page.ends_with(".md") {
            continue;
        }
        // The blocks of the page for Azure are run.
        let blocks = if page == "quickstart-azure.md" { Vec::new() } else { blocks(&page) };
        let in_blocks = blocks.iter().flat_map(|block| az_commands(&block.text));
        for command in in_blocks.chain(az_in_prose(&page)) {
            let output = script.bash(&command).output().await.unwrap();
            assert!(
                output.status.success(),
                "{page}: {command}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            seen += 1;
        }
    }
    assert!(seen >= 8, "{seen} commands were found");
}
