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
use tokio::sync::watch;
use tokio::time::timeout;

use crate::disklog::{self, Loss};
use crate::images::{Bootloader, call};

/// Within this time a running shell takes up a command line.
const TAKEN_UP: Duration = Duration::from_secs(15);

/// A disk and what was seen of its machine over all power cycles.
#[derive(Debug)]
pub struct Machine {
    bootloader: Bootloader,
    /// The disk as it is while the power is off.
    pub disk: PathBuf,
    dir: PathBuf,
    console: watch::Sender<String>,
    running: Option<Child>,
    memory: u32,
}

impl Machine {
    /// A machine over `disk`, off; `dir` is its own.
    pub fn new(bootloader: Bootloader, disk: PathBuf, dir: PathBuf) -> Result<Machine> {
        if bootloader == Bootloader::Grub {
            fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", dir.join("vars.fd"))?;
        }
        let (console, _) = watch::channel(String::new());
        Ok(Machine { bootloader, disk, dir, console, running: None, memory: 448 })
    }

    pub async fn power_on(&mut self) -> Result<()> {
        self.power_on_with(None).await
    }

    /// Powers on a machine whose disk fails the first write that touches the sector `bad` of 512 bytes.
    pub async fn power_on_with(&mut self, bad: Option<u64>) -> Result<()> {
        ensure!(self.running.is_none(), "the machine is on");
        let (overlay, log) = (self.dir.join("overlay.qcow2"), self.dir.join("writes.log"));
        for path in
            [&overlay, &log, &self.dir.join("shell"), &self.dir.join("monitor"), &self.dir.join("qmp")]
        {
            if path.exists() {
                fs::remove_file(path)?;
            }
        }
        fs::File::create(&log)?;
        let control = UnixListener::bind(self.dir.join("qmp"))?;
        call(
            std::process::Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
                .args([&self.disk, &overlay]),
        )?;
        let mut command = Command::new("qemu-system-x86_64");
        command.args([
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "Westmere",
            "-smp",
            "1",
            "-nodefaults",
            "-display",
            "none",
        ]);
        command.args(["-m", &self.memory.to_string()]);
        match self.bootloader {
            Bootloader::Uboot => command.args(["-M", "pc", "-bios", "/usr/lib/u-boot/qemu-x86/u-boot.rom"]),
            Bootloader::Grub => command.args(["-M", "q35"]).args([
                "-drive",
                "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd",
                "-drive",
                &format!("if=pflash,format=raw,file={}", self.dir.join("vars.fd").display()),
            ]),
        };
        let blockdev = format!(
            "driver=blklogwrites,node-name=disk,log-sector-size=512,log-super-update-interval=1,\
             log.driver=file,log.filename={},log.cache.no-flush=on,file={}",
            log.display(),
            if bad.is_some() { "faulty" } else { "written" },
        );
        let written = format!(
            "driver=qcow2,node-name=written,file.driver=file,file.filename={},file.cache.no-flush=on",
            overlay.display()
        );
        command.args(["-blockdev", &written]);
        if let Some(bad) = bad {
            let rule = "event=none,inject-error.0.iotype=write,inject-error.0.errno=5,inject-error.0.once=on";
            let faulty = format!(
                "driver=blkdebug,node-name=faulty,image=written,inject-error.0.{rule},inject-error.0.sector={bad}"
            );
            command.args(["-blockdev", &faulty]);
        }
        command
            .args(["-blockdev", &blockdev, "-device", "virtio-blk-pci,drive=disk"])
            .args([
                "-netdev",
                "user,id=net",
                "-device",
                "virtio-net-pci,netdev=net",
                "-device",
                "virtio-rng-pci",
            ])
            // Resets and switching off are left to `supervise`.
            .args(["-action", "reboot=shutdown,shutdown=pause", "-qmp"])
            .arg(format!("unix:{}", self.dir.join("qmp").display()))
            // For people who look into a machine that hangs.
            .arg("-monitor")
            .arg(format!("unix:{},server=on,wait=off", self.dir.join("monitor").display()))
            .args(["-serial", "stdio", "-serial"])
            .arg(format!("unix:{},server=on,wait=off", self.dir.join("shell").display()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(self.dir.join("qemu.log"))?)
            .kill_on_drop(true);
        let mut child = command.spawn().context("qemu-system-x86_64")?;
        let output = child.stdout.take().context("no console")?;
        self.console.send_modify(|text| text.push_str("\n[power on]\n"));
        tokio::spawn(keep(output, self.console.clone(), self.dir.join("console.log")));
        tokio::spawn(async move {
            if let Err(error) = supervise(control).await {
                eprintln!("fwupdate-vm: QEMU's control socket: {error:#}");
            }
        });
        self.running = Some(child);
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
        timeout(Duration::from_secs(90), conversation)
            .await
            .with_context(|| format!("no answer to {line:?}"))?
    }

    /// Waits until the machine has used `work` more of processor time, or for `patience`.
    pub async fn works(&self, work: Duration, patience: Duration) -> Result<()> {
        let pid = self.running.as_ref().and_then(Child::id).context("the machine is off")?;
        let until = processor_time(pid)? + work;
        let used = async {
            while processor_time(pid)? < until {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        };
        timeout(patience, used).await.unwrap_or(Ok(()))
    }

    /// Cuts the power: QEMU is killed, and of what was written since the last flush the disk keeps what `loss`
    /// leaves. Returns how many writes and flushes there were.
    pub async fn cut(&mut self, loss: &mut Loss) -> Result<disklog::Summary> {
        let mut child = self.running.take().context("the machine is off")?;
        child.kill().await?;
        self.console.send_modify(|text| text.push_str("\n[power cut]\n"));
        disklog::apply(&self.dir.join("writes.log"), &self.disk, loss)
    }

    /// Stops the machine; nothing that was written is lost.
    pub async fn stop(&mut self) -> Result<()> {
        self.cut(&mut Loss::Nothing).await.map(drop)
    }

    /// Waits until the running system has switched itself off, which loses nothing.
    pub async fn off(&mut self, patience: Duration) -> Result<()> {
        let mut child = self.running.take().context("the machine is off")?;
        timeout(patience, child.wait()).await.context("the machine does not switch itself off")??;
        disklog::apply(&self.dir.join("writes.log"), &self.disk, &mut Loss::Nothing)?;
        Ok(())
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// Resets the machine when its system asks for it, and ends QEMU when it switches itself off.
///
/// QEMU would reset by itself; but with an emulated processor that now and then loses a race on a busy host: the
/// processor goes on where it was, in the memory of a machine that has just been reset, and hangs before the firmware
/// says a word. Here the processor stands still before the reset and is released after it.
async fn supervise(control: UnixListener) -> Result<()> {
    let (events, mut commands) = control.accept().await?.0.into_split();
    drop(control);
    let mut events = BufReader::new(events).lines();
    commands.write_all(command("qmp_capabilities").as_bytes()).await?;
    // A machine whose power is cut closes the socket.
    while let Ok(Some(line)) = events.next_line().await {
        let event: serde_json::Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        ensure!(event.get("error").is_none(), "{line}");
        let text = |pointer| event.pointer(pointer).and_then(serde_json::Value::as_str).unwrap_or_default();
        let answer = match (text("/event"), text("/data/reason")) {
            ("SHUTDOWN", "guest-reset") => on_reset("reset") + &command("system_reset"),
            ("RESET", _) => on_reset("shutdown") + &command("cont"),
            ("SHUTDOWN", "guest-shutdown") => command("quit"),
            _ => continue,
        };
        commands.write_all(answer.as_bytes()).await?;
    }
    Ok(())
}

/// What QEMU does at a reset, whoever asks for it.
fn on_reset(action: &str) -> String {
    format!("{{\"execute\": \"set-action\", \"arguments\": {{\"reboot\": \"{action}\"}}}}\n")
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
