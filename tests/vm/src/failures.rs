//! Updates that cannot work. Each must end in the old slot, with the reason in the twin.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::disklog::Loss;
use crate::images::{Spec, Workshop};
use crate::site::{PATIENCE, Site, text};

/// A new image, whose update must be rolled back.
struct Case {
    name: &'static str,
    change: &'static str,
    code: &'static str,
    /// A word of the evidence or the message.
    word: &'static str,
    /// The hub refuses sessions while the new slot is on trial.
    no_hub: bool,
}

const FIRST: Spec = Spec { version: "1.0.0", kernel: 1, change: "" };

const CASES: &[Case] = &[
    Case {
        name: "kernel-not-loadable",
        change: "rm $1/boot/vmlinuz",
        code: "BootloaderFellBack",
        word: "",
        no_hub: false,
    },
    Case {
        // Without an initial RAM disk it finds no root.
        name: "kernel-panics",
        change: "cd $1/tmp && echo | cpio --quiet -o -H newc 2> /dev/null > ../boot/initrd.img || : > $1/boot/initrd.img",
        code: "BootloaderFellBack",
        word: "",
        no_hub: false,
    },
    Case {
        name: "init-missing",
        change: "rm -f $1/sbin/init $1/usr/sbin/init $1/lib/systemd/systemd $1/usr/bin/sh $1/bin/sh",
        code: "BootloaderFellBack",
        word: "",
        no_hub: false,
    },
    Case {
        name: "unit-fails",
        change: "printf '[Service]\\nType=oneshot\\nExecStart=/bin/false\\n' > $1/etc/systemd/system/app.service\n\
                 mkdir -p $1/etc/systemd/system/multi-user.target.wants\n\
                 ln -s ../app.service $1/etc/systemd/system/multi-user.target.wants/app.service",
        code: "HealthCheckFailed",
        word: "app.service",
        no_hub: false,
    },
    Case {
        name: "boot-complete-fails",
        change: "printf '[Unit]\\nBefore=boot-complete.target\\n[Service]\\nType=oneshot\\nRemainAfterExit=yes\\nExecStart=/bin/false\\n' > $1/etc/systemd/system/modem.service\n\
                 mkdir -p $1/etc/systemd/system/boot-complete.target.requires\n\
                 ln -s ../modem.service $1/etc/systemd/system/boot-complete.target.requires/modem.service",
        code: "HealthCheckFailed",
        word: "modem.service",
        no_hub: false,
    },
    Case {
        name: "check-fails",
        // It shows that it runs outside the agent's sandbox, and then fails.
        change: "printf '#!/bin/sh\\ngrep CapEff /proc/self/status\\necho no modem\\nexit 3\\n' > $1/etc/fwupdate/checks/required.d/10-modem\n\
                 chmod 755 $1/etc/fwupdate/checks/required.d/10-modem",
        code: "HealthCheckFailed",
        word: "000001ffffffffff\nno modem",
        no_hub: false,
    },
    Case { name: "hub-unreachable", change: "", code: "CloudUnreachable", word: "hub", no_hub: true },
    Case {
        name: "network-gone",
        change: "rm $1/etc/systemd/network/10-qemu.network",
        code: "CloudUnreachable",
        word: "hub",
        no_hub: false,
    },
    Case {
        name: "agent-crashes",
        change: "printf '#!/bin/sh\\nkill -SEGV $$\\n' > $1/usr/sbin/fwupdated",
        code: "BootloaderFellBack",
        word: "",
        no_hub: false,
    },
    Case {
        name: "agent-hangs",
        change: "printf '#!/bin/sh\\nsystemd-notify --ready\\nexec sleep 100000\\n' > $1/usr/sbin/fwupdated\n\
                 sed -i '/^Type=notify/a NotifyAccess=all' $1/usr/lib/systemd/system/fwupdate.service",
        code: "BootloaderFellBack",
        word: "",
        no_hub: false,
    },
];

pub async fn run(workshop: &Workshop, only: &str) -> Result<()> {
    let mut count = 0;
    for case in CASES.iter().filter(|case| case.name.contains(only)) {
        fails(workshop, case).await.with_context(|| case.name.to_owned())?;
        count += 1;
    }
    for (name, cuts, result) in [("cut-twice", 2, "committed"), ("cut-always", 3, "rolledBack")] {
        if name.contains(only) {
            first_boot_cut(workshop, name, cuts, result).await.with_context(|| name.to_owned())?;
            count += 1;
        }
    }
    ensure!(count > 0, "no case is named {only}");
    Ok(())
}

async fn fails(workshop: &Workshop, case: &Case) -> Result<()> {
    let release = workshop.release(Spec { version: "2.0.0", kernel: 2, change: case.change })?;
    let mut site = Site::new(workshop, case.name, FIRST).await?;
    site.machine.power_on().await?;
    site.connected().await?;
    let from = site.machine.mark();
    site.start_update(&release, case.name).await?;
    if case.no_hub {
        site.machine.expect(from, "fwupdate: trial: slot B", PATIENCE).await?;
        site.hub.faults().mqtt(|mqtt| mqtt.refuse_connects = u64::MAX);
        site.machine.expect(from, "fwupdate: A: slot A", PATIENCE).await?;
        site.hub.faults().clear();
    }
    let last = site.outcome(case.name).await?;
    ended(&site, &last, "rolledBack", "A", "1.0.0").await?;
    let code = text(&last, "/error/code");
    ensure!(code == case.code, "{last}");
    ensure!(format!("{last}").contains(&case.word.replace('\n', "\\n")), "no {:?} in {last}", case.word);
    println!("{}: rolledBack {code}: {}", case.name, text(&last, "/error/message"));
    Ok(())
}

/// The twin says `result`, and the system that runs is the one that it should be.
async fn ended(site: &Site, last: &Value, result: &str, slot: &str, version: &str) -> Result<()> {
    ensure!(text(last, "/result") == result, "{last}");
    let running = site.running().await?;
    ensure!(running == (slot.to_owned(), version.to_owned()), "{running:?} runs after {last}");
    Ok(())
}

/// The power fails during the first `cuts` boots of a good image, once its kernel runs.
async fn first_boot_cut(workshop: &Workshop, name: &str, cuts: usize, result: &str) -> Result<()> {
    let release = workshop.release(Spec { version: "2.0.0", kernel: 2, change: "" })?;
    let mut site = Site::new(workshop, name, FIRST).await?;
    site.machine.power_on().await?;
    site.connected().await?;
    let mut from = site.machine.mark();
    site.start_update(&release, name).await?;
    for _ in 0..cuts {
        site.machine.expect(from, "fwupdate: trial: slot B", PATIENCE).await?;
        site.machine.expect(from, "systemd[1]: ", PATIENCE).await?;
        site.machine.expect(from, "Run /init as init process", PATIENCE).await?;
        site.machine.cut(&mut Loss::Random(fastrand::Rng::with_seed(cuts as u64))).await?;
        from = site.machine.mark();
        site.machine.power_on().await?;
    }
    let last = site.outcome(name).await?;
    let (slot, version) = if result == "committed" { ("B", "2.0.0") } else { ("A", "1.0.0") };
    ended(&site, &last, result, slot, version).await?;
    println!("{name}: {cuts} cuts: {result} {}", text(&last, "/error/message"));
    Ok(())
}
