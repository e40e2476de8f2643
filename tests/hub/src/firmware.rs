//! The firmware of a simulated gateway: what the boot scripts in packaging/boot/ do, on the same bytes.
//!
//! One call is one power-on: read the boot environment, choose a slot, count a trial's attempt, and leave the
//! folders that the booted kernel would show as `/proc` and `/sys`. Written from the bootloaders' formats and
//! not from the agent, whose misreadings it would otherwise share.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The gateway's parts. Folders are made where they are missing.
#[derive(Debug, Clone)]
pub struct Machine {
    pub environment: Environment,
    /// Slots A and B: regular files or block devices.
    pub slots: [PathBuf; 2],
    /// What the booted system sees as `/proc` and `/sys`.
    pub proc: PathBuf,
    pub sys: PathBuf,
    /// The power fails at this point, once a trial's attempt is to be counted.
    pub cut: Option<Cut>,
}

/// Where the boot environment is.
#[derive(Debug, Clone)]
pub enum Environment {
    /// `fw_env.config`: one line a copy.
    Uboot {
        config: PathBuf,
    },
    Grub {
        grubenv: PathBuf,
    },
}

/// A cut of power around the save of the environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    Before,
    /// Only so many bytes of the write reach the medium.
    During(usize),
    After,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    A,
    B,
}

/// How a power-on ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Booted {
        slot: Slot,
        trial: bool,
        environment_lost: bool,
    },
    /// The power failed as `Machine::cut` asked.
    Cut,
    /// None of the slots that may boot holds a kernel that could be loaded.
    Stuck,
}

/// Powers the machine on once. An error is one of the test's own making: a file that cannot be opened.
pub fn boot(machine: &Machine) -> io::Result<Outcome> {
    // Without a primary there is nothing to fall back to: the slots are tried as if all were lost.
    let found = Loaded::read(&machine.environment)?;
    let lost = found.is_none();
    let environment = found.filter(|found| found.slot("fwupdate_primary").is_some());
    let word = match (lost, environment.is_some()) {
        (true, _) => " fwupdate.env=lost",
        (false, false) => " fwupdate.env=unset",
        (false, true) => "",
    };
    if let Some(outcome) = environment.as_ref().map_or(Ok(None), |found| try_trial(machine, found))? {
        return Ok(outcome);
    }
    for slot in environment.as_ref().map_or(vec![Slot::A, Slot::B], Loaded::ordinary) {
        if has_kernel(machine.path(slot))? {
            return machine.start(slot, word).map(|()| Outcome::Booted {
                slot,
                trial: false,
                environment_lost: lost,
            });
        }
    }
    Ok(Outcome::Stuck)
}

/// Counts an attempt of a pending trial and boots it; `None`: there is none, it cannot be counted, or it has no
/// kernel.
fn try_trial(machine: &Machine, environment: &Loaded) -> io::Result<Option<Outcome>> {
    let Some((slot, tries)) = environment.pending_trial() else { return Ok(None) };
    let part = match machine.cut {
        Some(Cut::Before) => return Ok(Some(Outcome::Cut)),
        Some(Cut::During(bytes)) => bytes,
        Some(Cut::After) | None => usize::MAX,
    };
    let saved = environment.save_tries(tries - 1, part)?;
    if machine.cut.is_some() {
        return Ok(Some(Outcome::Cut));
    }
    if saved && has_kernel(machine.path(slot))? {
        machine.start(slot, " fwupdate.trial=1 panic=10")?;
        Ok(Some(Outcome::Booted { slot, trial: true, environment_lost: false }))
    } else {
        Ok(None)
    }
}

impl Slot {
    fn parse(text: &str) -> Option<Slot> {
        match text {
            "A" => Some(Slot::A),
            "B" => Some(Slot::B),
            _ => None,
        }
    }

    fn letter(self) -> char {
        match self {
            Slot::A => 'A',
            Slot::B => 'B',
        }
    }
}

impl Machine {
    fn path(&self, slot: Slot) -> &Path {
        let [a, b] = &self.slots;
        match slot {
            Slot::A => a,
            Slot::B => b,
        }
    }

    /// Leaves what the kernel of `slot` would show.
    fn start(&self, slot: Slot, more: &str) -> io::Result<()> {
        let (letter, part) = (slot.letter(), slot as u8 + 1);
        let cmdline = format!("console=ttyS0 root=PARTUUID=00000000-0{part} fwupdate.slot={letter}{more}");
        let (major, minor) = self.show_device(slot)?;
        let mounts = format!(
            "21 26 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw\n\
             22 26 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw\n\
             26 1 {major}:{minor} / / rw,relatime shared:1 - ext4 /dev/root rw\n"
        );
        put(&self.proc.join("cmdline"), &(cmdline + "\n"))?;
        put(&self.proc.join("self/mountinfo"), &mounts)?;
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        put(&self.proc.join("sys/kernel/random/boot_id"), &boot_id)
    }

    /// The number of the device under `/`: the slot's own, or that of a loop device over its file.
    fn show_device(&self, slot: Slot) -> io::Result<(u64, u64)> {
        let path = fs::canonicalize(self.path(slot))?;
        let meta = fs::metadata(&path)?;
        if meta.file_type().is_block_device() {
            let number = meta.rdev();
            let major = (number >> 8) & 0xfff | (number >> 32) & !0xfff;
            let minor = number & 0xff | (number >> 12) & !0xff;
            return Ok((major, minor));
        }
        let minor = slot as u64;
        let file = self.sys.join(format!("dev/block/7:{minor}/loop/backing_file"));
        put(&file, &format!("{}\n", path.display()))?;
        Ok((7, minor))
    }
}

fn put(path: &Path, text: &str) -> io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
    fs::write(path, text)
}

/// Whether a bootloader could read a file system there: the magic number of ext4, squashfs or erofs.
fn has_kernel(slot: &Path) -> io::Result<bool> {
    let mut head = Vec::new();
    match File::open(slot) {
        Ok(file) => file.take(0x440).read_to_end(&mut head)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let at = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    Ok(at(0x438, &[0x53, 0xef]) || at(0, b"hsqs") || at(0x400, &[0xe2, 0xe1, 0xf5, 0xe0]))
}

/// A valid environment and how its tries are saved.
enum Loaded {
    /// `other`: the copy that is not current, which a save replaces; none where there is one copy only.
    Uboot {
        data: Vec<u8>,
        flags: u8,
        other: Option<Area>,
    },
    Grub {
        path: PathBuf,
        block: Vec<u8>,
    },
}

/// One copy of U-Boot's environment.
#[derive(Debug, Clone)]
struct Area {
    path: PathBuf,
    offset: u64,
    size: usize,
}

impl Loaded {
    /// `None`: lost.
    fn read(environment: &Environment) -> io::Result<Option<Loaded>> {
        match environment {
            Environment::Uboot { config } => read_uboot(config),
            Environment::Grub { grubenv } => read_grub(grubenv),
        }
    }

    fn variable(&self, name: &str) -> String {
        let (bytes, end) = match self {
            Loaded::Uboot { data, .. } => (data, 0),
            Loaded::Grub { block, .. } => (block, b'\n'),
        };
        let mut lines = bytes.split(|byte| *byte == end).take_while(|line| !line.is_empty());
        let value = lines.find_map(|line| line.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
        String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
    }

    /// A slot on trial with one to nine attempts left.
    fn pending_trial(&self) -> Option<(Slot, u8)> {
        let slot = self.slot("fwupdate_trial")?;
        match self.variable("fwupdate_tries").as_bytes() {
            [digit @ b'1'..=b'9'] => Some((slot, digit - b'0')),
            _ => None,
        }
    }

    /// The slots of an ordinary boot, in order.
    fn ordinary(&self) -> Vec<Slot> {
        ["fwupdate_primary", "fwupdate_fallback"].into_iter().filter_map(|name| self.slot(name)).collect()
    }

    fn slot(&self, name: &str) -> Option<Slot> {
        Slot::parse(&self.variable(name))
    }

    /// Saves the attempts left, or only the first `part` bytes of that write. `false`: it cannot be saved.
    fn save_tries(&self, tries: u8, part: usize) -> io::Result<bool> {
        match self {
            Loaded::Uboot { other: None, .. } => Ok(false),
            Loaded::Uboot { data, flags, other: Some(area) } => {
                let data = with_digit(data, b"\0fwupdate_tries=", tries);
                let copy = [&crc32(&data).to_ne_bytes()[..], &[flags.wrapping_add(1)], &data].concat();
                write_part(&area.path, area.offset, &copy, part)
            }
            Loaded::Grub { path, block } => {
                write_part(path, 0, &with_digit(block, b"\nfwupdate_tries=", tries), part)
            }
        }
    }
}

/// Replaces the digit behind `name`, which a separator precedes, except at the very start.
fn with_digit(bytes: &[u8], name: &[u8], digit: u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let bare = name.get(1..).unwrap_or_default();
    let place = if bytes.starts_with(bare) {
        Some(bare.len())
    } else {
        bytes.windows(name.len()).position(|window| window == name).map(|start| start + name.len())
    };
    if let Some(byte) = place.and_then(|place| bytes.get_mut(place)) {
        *byte = b'0' + digit;
    }
    bytes
}

fn write_part(path: &Path, offset: u64, bytes: &[u8], part: usize) -> io::Result<bool> {
    let file = match OpenOptions::new().write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => return Ok(false),
        Err(error) => return Err(error),
    };
    file.write_all_at(bytes.get(..part).unwrap_or(bytes), offset)?;
    Ok(true)
}

fn read_uboot(config: &Path) -> io::Result<Option<Loaded>> {
    let areas = areas(config)?;
    let header = if areas.len() > 1 { 5 } else { 4 };
    let mut valid: Vec<(usize, u8, Vec<u8>)> = Vec::new();
    for (index, area) in areas.iter().enumerate() {
        let mut bytes = vec![0; area.size];
        if File::open(&area.path)?.read_exact_at(&mut bytes, area.offset).is_err() {
            continue;
        }
        let (head, data) = bytes.split_at(header);
        if head.starts_with(&crc32(data).to_ne_bytes()) {
            valid.push((index, head.get(4).copied().unwrap_or(0), data.to_vec()));
        }
    }
    // Of two valid copies the later is current if its flags are one ahead of, or simply above, the first's.
    if let [(_, first, _), (_, second, _)] = valid.as_slice() {
        let wrapped = |from: u8, to: u8| from == 255 && to == 0;
        if wrapped(*first, *second) || (second > first && !wrapped(*second, *first)) {
            valid.swap(0, 1);
        }
    }
    Ok(valid.into_iter().next().map(|(index, flags, data)| {
        let other = areas.into_iter().enumerate().find(|(other, _)| *other != index).map(|(_, area)| area);
        Loaded::Uboot { data, flags, other }
    }))
}

/// `device offset size`, the size in hexadecimal; the simulated machine's own file is well-formed.
fn areas(config: &Path) -> io::Result<Vec<Area>> {
    let malformed =
        || io::Error::new(io::ErrorKind::InvalidData, format!("{} is malformed", config.display()));
    let number = |text: &str, radix| match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => u64::from_str_radix(text, radix).ok(),
    };
    let text = fs::read_to_string(config)?;
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    lines
        .map(|line| {
            let mut fields = line.split_whitespace();
            let path = PathBuf::from(fields.next()?);
            let offset = number(fields.next()?, 10)?;
            let size = usize::try_from(number(fields.next()?, 16)?).ok().filter(|size| *size > 5)?;
            Some(Area { path, offset, size })
        })
        .collect::<Option<_>>()
        .ok_or_else(malformed)
}

fn read_grub(path: &Path) -> io::Result<Option<Loaded>> {
    let block = match fs::read(path) {
        Ok(block) => block,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let valid = block.len() == 1024 && block.starts_with(b"# GRUB Environment Block\n");
    Ok(valid.then(|| Loaded::Grub { path: path.to_owned(), block }))
}

/// A variable as the firmware would read it now; empty when it is not set, `None` when the environment is lost.
#[allow(dead_code)]
pub fn variable(environment: &Environment, name: &str) -> io::Result<Option<String>> {
    Ok(Loaded::read(environment)?.map(|loaded| loaded.variable(name)))
}

/// One copy of a redundant U-Boot environment of `size` bytes.
pub fn uboot_copy(variables: &[&str], flags: u8, size: usize) -> Vec<u8> {
    let mut data = variables.iter().flat_map(|v| [v.as_bytes(), b"\0"].concat()).collect::<Vec<_>>();
    data.resize(size.saturating_sub(5), 0);
    [&crc32(&data).to_ne_bytes()[..], &[flags], &data].concat()
}

/// A grubenv.
pub fn grub_block(variables: &[&str]) -> Vec<u8> {
    let mut block = format!("# GRUB Environment Block\n{}\n", variables.join("\n")).into_bytes();
    block.resize(1024, b'#');
    block
}

/// CRC-32 as in zlib, bit by bit: a kilobyte a boot needs no table.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

// By its path, since tests/boot.rs takes this file by its own.
#[cfg(test)]
#[path = "firmware/tests.rs"]
mod tests;
