//! The emulated machine: QEMU without KVM, its console, and a shell in the running system.
//!
//! Writes of the guest go to a throw-away overlay and, with every flush, to a log (QEMU's blklogwrites). When
//! power is cut, the disk becomes what `disklog` makes of that log.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::chip::Chip;
use crate::disklog::{self, Loss};
use crate::images::{Bootloader, call};

/// Within this time a running shell takes up a command line.
const TAKEN_UP: Duration = Duration::from_secs(15);
/// Only a command that hangs takes so long, also on a host that does much else.
const ANSWERED: Duration = Duration::from_secs(600);

/// A disk and what was seen of its machine over all power cycles.
#[derive(Debug)]
pub struct Machine {
    bootloader: Bootloader,
    /// The disk as it is while the power is off.
    pub disk: PathBuf,
    dir: PathBuf,
    /// A TPM, if it has one.
    pub chip: Option<Chip>,
    console: watch::Sender<String>,
    running: Option<Running>,
}

/// The power is on: QEMU runs, a new one after each reset.
#[derive(Debug)]
struct Running {
    /// Cuts the power, also by being dropped.
    cut: oneshot::Sender<()>,
    /// Ends when the power is off.
    off: JoinHandle<Result<()>>,
    work: watch::Receiver<Work>,
}

/// Processor time since power-on.
#[derive(Debug, Clone, Copy, Default)]
struct Work {
    /// The QEMU that runs now.
    pid: u32,
    /// What those before it have used.
    before: Duration,
}

impl Machine {
    /// A machine over `disk`, off; `dir` is its own.
    pub fn new(bootloader: Bootloader, disk: PathBuf, dir: PathBuf) -> Result<Machine> {
        if bootloader == Bootloader::Grub {
            fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", dir.join("vars.fd"))?;
        }
        let (console, _) = watch::channel(String::new());
        Ok(Machine { bootloader, disk, dir, chip: None, console, running: None })
    }

    pub async fn power_on(&mut self) -> Result<()> {
        self.power_on_with(None).await
    }

    /// Powers on a machine whose disk fails the first write that touches the sector `bad` of 512 bytes.
    pub async fn power_on_with(&mut self, bad: Option<u64>) -> Result<()> {
        ensure!(self.running.is_none(), "the machine is on");
        let (overlay, log) = (self.dir.join("overlay.qcow2"), self.dir.join("writes.log"));
        if overlay.exists() {
            fs::remove_file(&overlay)?;
        }
        fs::File::create(&log)?;
        call(
            std::process::Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
                .args([&self.disk, &overlay]),
        )?;
        self.console.send_modify(|text| text.push_str("\n[power on]\n"));
        let emulator =
            Emulator { bootloader: self.bootloader, dir: self.dir.clone(), chip: self.chip.clone() };
        let (cut, is_cut) = oneshot::channel();
        let (told, work) = watch::channel(Work::default());
        let power = powered(emulator, bad, self.console.clone(), told, is_cut);
        // Whoever waits for the machine sees nothing of it; people do.
        let off =
            tokio::spawn(async move { power.await.inspect_err(|error| eprintln!("fwupdate-vm: {error:#}")) });
        self.running = Some(Running { cut, off, work });
        Ok(())
    }

    /// How much the console has shown: a place to search from.
    pub fn mark(&self) -> usize {
        self.console.borrow().len()
    }

    /// Waits until the console shows `text` after `from`.
    pub async fn expect(&self, from: usize, text: &str, patience: Duration) -> Result<()> {
        let mut console = self.console.subscribe();
        let seen = console.wait_for(|shown| shown.get(from..).is_some_and(|shown| shown.contains(text)));
        match timeout(patience, seen).await {
            Ok(seen) => drop(seen.context("the console ended")?),
            Err(_) => bail!("{text:?} did not appear on the console within {} s", patience.as_secs()),
        }
        Ok(())
    }

    /// Runs one command line in the running system; its output. A line that comes while the system still boots is
    /// lost: it is said again until it is taken up.
    pub async fn shell(&self, line: &str) -> Result<String> {
        for _ in 0..20 {
            if let Some(output) = self.converse(line).await? {
                return Ok(output);
            }
        }
        bail!("the shell does not take up {line:?}")
    }

    /// `None`: nothing came back, not even the beginning.
    async fn converse(&self, line: &str) -> Result<Option<String>> {
        let begun = AtomicBool::new(false);
        let conversation = async {
            let mut stream = UnixStream::connect(self.dir.join("shell")).await?;
            stream.write_all(format!("echo '[begin]'; {line}\n").as_bytes()).await?;
            let mut lines = BufReader::new(stream).lines();
            let mut output: Option<String> = None;
            while let Some(line) = lines.next_line().await? {
                match (&mut output, line.trim_end()) {
                    (_, "[begin]") => {
                        begun.store(true, Ordering::Relaxed);
                        output = Some(String::new());
                    }
                    (Some(output), line) if line.starts_with("[exit ") => {
                        ensure!(line == "[exit 0]", "{line}: {output}");
                        return Ok(Some(std::mem::take(output)));
                    }
                    (Some(output), line) => {
                        output.push_str(line);
                        output.push('\n');
                    }
                    (None, _) => {}
                }
            }
            bail!("the shell ended")
        };
        tokio::pin!(conversation);
        if let Ok(done) = timeout(TAKEN_UP, &mut conversation).await {
            return done;
        }
        if !begun.load(Ordering::Relaxed) {
            return Ok(None);
        }
        timeout(ANSWERED, conversation).await.with_context(|| format!("no answer to {line:?}"))?
    }

    /// Waits until the machine has used `work` more of processor time, or for `patience`.
    pub async fn works(&self, work: Duration, patience: Duration) -> Result<()> {
        let mut told = self.running.as_ref().context("the machine is off")?.work.clone();
        told.wait_for(|work| work.pid != 0).await.context("QEMU did not start")?;
        let begun = self.worked()?.unwrap_or_default();
        let used = async {
            while self.worked()?.is_none_or(|now| now < begun + work) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        };
        timeout(patience, used).await.unwrap_or(Ok(()))
    }

    /// Processor time since power-on; `None` just now, between two QEMUs.
    fn worked(&self) -> Result<Option<Duration>> {
        let running = self.running.as_ref().context("the machine is off")?;
        let Work { pid, before } = *running.work.borrow();
        Ok(processor_time(pid).ok().map(|now| before + now))
    }

    /// Cuts the power: QEMU is killed, and of what was written since the last flush the disk keeps what `loss`
    /// leaves. Returns how many writes and flushes there were.
    pub async fn cut(&mut self, loss: &mut Loss) -> Result<disklog::Summary> {
        let running = self.running.take().context("the machine is off")?;
        drop(running.cut);
        running.off.await??;
        self.console.send_modify(|text| text.push_str("\n[power cut]\n"));
        disklog::apply(&self.dir.join("writes.log"), &self.disk, loss)
    }

    /// Stops the machine; nothing that was written is lost.
    pub async fn stop(&mut self) -> Result<()> {
        self.cut(&mut Loss::Nothing).await.map(drop)
    }

    /// Waits until the running system has switched itself off, which loses nothing.
    pub async fn off(&mut self, patience: Duration) -> Result<()> {
        let running = self.running.take().context("the machine is off")?;
        timeout(patience, running.off).await.context("the machine does not switch itself off")???;
        disklog::apply(&self.dir.join("writes.log"), &self.disk, &mut Loss::Nothing)?;
        Ok(())
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// How QEMU is started.
struct Emulator {
    bootloader: Bootloader,
    dir: PathBuf,
    chip: Option<Chip>,
}

impl Emulator {
    /// `again`: after a reset; the disk's overlay and log go on.
    fn command(&self, bad: Option<u64>, again: bool) -> Result<Command> {
        let path = |name: &str| self.dir.join(name).display().to_string();
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-accel", "tcg,thread=multi", "-cpu", "Westmere", "-smp", "1", "-m", "448"]);
        command.args(["-nodefaults", "-display", "none"]);
        match self.bootloader {
            Bootloader::Uboot => command.args(["-M", "pc", "-bios", "/usr/lib/u-boot/qemu-x86/u-boot.rom"]),
            Bootloader::Grub => command.args(["-M", "q35", "-drive"]).args([
                "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd",
                "-drive",
                &format!("if=pflash,format=raw,file={}", path("vars.fd")),
            ]),
        };
        let written = format!(
            "driver=qcow2,node-name=written,file.driver=file,file.filename={},file.cache.no-flush=on",
            path("overlay.qcow2")
        );
        command.args(["-blockdev", &written]);
        if let Some(bad) = bad {
            let rule = "event=none,inject-error.0.iotype=write,inject-error.0.errno=5,inject-error.0.once=on";
            let faulty = format!(
                "driver=blkdebug,node-name=faulty,image=written,inject-error.0.{rule},inject-error.0.sector={bad}"
            );
            command.args(["-blockdev", &faulty]);
        }
        let logged = format!(
            "driver=blklogwrites,node-name=disk,{},log-super-update-interval=1,\
             log.driver=file,log.filename={},log.cache.no-flush=on,file={}",
            if again { "log-append=on" } else { "log-sector-size=512" },
            path("writes.log"),
            if bad.is_some() { "faulty" } else { "written" },
        );
        command.args(["-blockdev", &logged, "-device", "virtio-blk-pci,drive=disk"]);
        command.args([
            "-netdev",
            "user,id=net",
            "-device",
            "virtio-net-pci,netdev=net",
            "-device",
            "virtio-rng-pci",
        ]);
        command.args(self.chip.iter().flat_map(Chip::arguments));
        // `powered` decides what becomes of a reset and of switching off.
        command
            .args(["-action", "reboot=shutdown,shutdown=pause", "-qmp"])
            .arg(format!("unix:{}", path("qmp")));
        // For people who look into a machine that hangs.
        command.arg("-monitor").arg(format!("unix:{},server=on,wait=off", path("monitor")));
        command
            .args(["-serial", "stdio", "-serial"])
            .arg(format!("unix:{},server=on,wait=off", path("shell")));
        let errors = fs::File::create(self.dir.join("qemu.log"))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors).kill_on_drop(true);
        Ok(command)
    }

    /// Starts QEMU, and the socket by which it tells what happens.
    fn start(&self, bad: Option<u64>, again: bool) -> Result<(Child, UnixListener)> {
        for name in ["shell", "monitor", "qmp"] {
            let path = self.dir.join(name);
            if path.exists() {
                fs::remove_file(path)?;
            }
        }
        let control = UnixListener::bind(self.dir.join("qmp"))?;
        Ok((self.command(bad, again)?.spawn().context("qemu-system-x86_64")?, control))
    }
}

/// From power-on until the system switches itself off or the power is cut.
///
/// A reset starts a new QEMU. In the old one OVMF came to a stand now and then: the emulated processor got ever slower
/// with each boot, until the firmware's own clock interrupt took longer than the time to the next.
async fn powered(
    emulator: Emulator,
    bad: Option<u64>,
    console: watch::Sender<String>,
    told: watch::Sender<Work>,
    mut cut: oneshot::Receiver<()>,
) -> Result<()> {
    let (mut bad, mut before) = (bad, Duration::ZERO);
    for again in std::iter::once(false).chain(std::iter::repeat(true)) {
        let chip = match &emulator.chip {
            Some(chip) => Some(chip.power_on().await?),
            None => None,
        };
        let (mut child, control) = emulator.start(bad.take(), again)?;
        let pid = child.id().context("QEMU ended at once")?;
        told.send_replace(Work { pid, before });
        let output = child.stdout.take().context("no console")?;
        let kept = tokio::spawn(keep(output, console.clone(), emulator.dir.join("console.log")));
        let end = tokio::select! {
            _ = &mut cut => return Ok(child.kill().await?),
            end = ends(control, pid) => end?,
        };
        child.wait().await?;
        if let Some(mut chip) = chip {
            chip.wait().await?;
        }
        // All that it said comes before what the next one says.
        kept.await?;
        match end {
            End::Off => break,
            End::Reset { used } => before += used,
        }
    }
    Ok(())
}

/// What the running system asked for.
enum End {
    Reset { used: Duration },
    Off,
}

/// Waits until the system ends, and ends QEMU.
async fn ends(control: UnixListener, pid: u32) -> Result<End> {
    let (events, mut commands) = control.accept().await?.0.into_split();
    let mut events = BufReader::new(events).lines();
    commands.write_all(command("qmp_capabilities").as_bytes()).await?;
    while let Some(line) = events.next_line().await? {
        let event: serde_json::Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        let text = |pointer| event.pointer(pointer).and_then(serde_json::Value::as_str).unwrap_or_default();
        let end = match (text("/event"), text("/data/reason")) {
            ("SHUTDOWN", "guest-reset") => End::Reset { used: processor_time(pid)? },
            ("SHUTDOWN", "guest-shutdown") => End::Off,
            _ => continue,
        };
        commands.write_all(command("quit").as_bytes()).await?;
        // A connection that is closed too early takes the command with it. How it ends does not matter.
        while let Ok(Some(_)) = events.next_line().await {}
        return Ok(end);
    }
    bail!("QEMU ended by itself; see qemu.log")
}

/// A line of QMP.
fn command(name: &str) -> String {
    format!("{{\"execute\": \"{name}\"}}\n")
}

/// What a process has used so far (proc(5), /proc/PID/stat: utime and stime, in ticks of 1/100 s).
fn processor_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(") ").context("no fields in stat")?.1.split(' ');
    let ticks = fields.skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(ticks * 10))
}

/// Keeps the console for conditions and, in a file, for people.
async fn keep(mut output: tokio::process::ChildStdout, console: watch::Sender<String>, path: PathBuf) {
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path).ok();
    let mut buffer = vec![0; 4096];
    while let Ok(count @ 1..) = output.read(&mut buffer).await {
        let bytes = buffer.get(..count).unwrap_or_default();
        console.send_modify(|text| text.push_str(&String::from_utf8_lossy(bytes)));
        if let Some(Err(error)) = file.as_mut().map(|file| file.write_all(bytes)) {
            eprintln!("console.log: {error}");
        }
    }
}
