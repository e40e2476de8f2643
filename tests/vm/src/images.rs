//! Images and bundles, made once and kept: by scripts in `image/`, and by the product's own `fwupdate-bundle`.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use sha2::{Digest, Sha256};

/// What starts the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Bootloader {
    Uboot,
    Grub,
}

impl Bootloader {
    pub fn name(self) -> &'static str {
        match self {
            Bootloader::Uboot => "uboot",
            Bootloader::Grub => "grub",
        }
    }
}

/// One image to be made: its version, which of the two kernels, and how it is spoilt.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    pub version: &'static str,
    pub kernel: u8,
    /// A shell script over the root folder `$1`.
    pub change: &'static str,
}

/// A bundle on disk, and the digest of the image in it.
#[derive(Debug, Clone)]
pub struct Release {
    pub bundle: PathBuf,
    pub image: PathBuf,
    pub version: String,
}

/// Makes images and keeps them under a name that holds a digest of all that went in.
#[derive(Debug)]
pub struct Workshop {
    pub dir: PathBuf,
    pub bootloader: Bootloader,
    source: PathBuf,
    base: PathBuf,
    deb: PathBuf,
    /// Digest of the package, the scripts and the base.
    inputs: String,
}

impl Workshop {
    pub fn new(dir: &Path, deb: &Path, bootloader: Bootloader) -> Result<Workshop> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).to_owned();
        fs::create_dir_all(dir)?;
        let dir = dir.canonicalize()?;
        let deb =
            deb.canonicalize().with_context(|| format!("{}: run `make packages` first", deb.display()))?;
        let script = source.join("image/base.sh");
        let base = dir.join(format!("base-{}.tar", hex(&Sha256::digest(fs::read(&script)?))));
        let _alone = alone(&dir)?;
        if !base.exists() {
            call(Command::new(script).arg(&base))?;
        }
        let mut inputs = Sha256::new();
        inputs.update(fs::read(&deb)?);
        let mut scripts = files_below(&source.join("image"))?;
        scripts.sort();
        for script in scripts {
            inputs.update(fs::read(script)?);
        }
        inputs.update(fs::metadata(&base)?.len().to_le_bytes());
        let inputs = hex(&inputs.finalize());
        let workshop = Workshop { dir, bootloader, source, base, deb, inputs };
        workshop.keys()?;
        Ok(workshop)
    }

    fn keys(&self) -> Result<()> {
        if self.dir.join("keys/release.key.pem").exists() {
            return Ok(());
        }
        call(
            Command::new(program("fwupdate-bundle")?).arg("keygen").arg("--out").arg(self.dir.join("keys")),
        )?;
        fs::create_dir_all(self.dir.join("pub"))?;
        fs::copy(self.dir.join("keys/release.pub.pem"), self.dir.join("pub/release.pub.pem"))?;
        Ok(())
    }

    /// The image of `spec`, made if it is not there yet.
    pub fn image(&self, spec: Spec) -> Result<PathBuf> {
        let mut digest = Sha256::new();
        digest.update(format!("{}{:?}{:?}", self.inputs, self.bootloader, spec));
        let name = format!("{}-{}-{}.img", self.bootloader.name(), spec.version, hex(&digest.finalize()));
        let image = self.dir.join(name);
        let _alone = alone(&self.dir)?;
        if image.exists() {
            return Ok(image);
        }
        let change = image.with_extension("change");
        fs::write(&change, spec.change)?;
        let kernel = spec.kernel.to_string();
        call(
            Command::new(self.source.join("image/rootfs.sh"))
                .args([&self.base, &self.deb, &self.dir.join("pub")])
                .args([self.bootloader.name(), spec.version, &kernel])
                .args([&image, &change]),
        )?;
        Ok(image)
    }

    /// The signed bundle of `spec`.
    pub fn release(&self, spec: Spec) -> Result<Release> {
        let image = self.image(spec)?;
        let bundle = image.with_extension("fwb");
        let _alone = alone(&self.dir)?;
        if !bundle.exists() {
            let part = image.with_extension("part");
            call(
                Command::new(program("fwupdate-bundle")?)
                    .args(["create", "--compatible", "virtual-gateway", "--level", "3"])
                    .args(["--version", spec.version, "--security-version", "1"])
                    .args([Path::new("--image"), &image, Path::new("--key")])
                    .args([&self.dir.join("keys/release.key.pem"), Path::new("-o"), &part]),
            )?;
            fs::rename(part, &bundle)?;
        }
        Ok(Release { bundle, image, version: spec.version.to_owned() })
    }

    /// A disk with `slot_a` in slot A, and `data` on the data partition.
    pub fn disk(&self, slot_a: &Path, data: &Path, out: &Path) -> Result<()> {
        call(
            Command::new(self.source.join("image/disk.sh"))
                .arg(self.bootloader.name())
                .arg(self.source.join("../../packaging/boot"))
                .args([slot_a, data, out]),
        )
    }
}

/// Waits until no other run makes images in `dir`; the next one waits until the file is closed.
fn alone(dir: &Path) -> Result<fs::File> {
    let file = fs::File::create(dir.join("lock"))?;
    file.lock()?;
    Ok(file)
}

/// A program of this workspace: beside this one, or built for release.
fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let debug = own.with_file_name(name);
    let release = debug.components().collect::<PathBuf>().to_string_lossy().replace("/debug/", "/release/");
    let release = PathBuf::from(release);
    let found = [release, debug].into_iter().find(|path| path.exists());
    found.with_context(|| format!("{name} is not built: run `cargo build --release`"))
}

/// Runs a command to its end.
pub fn call(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{:?}", command.get_program()))?;
    ensure!(status.success(), "{:?} ended with {status}", command.get_program());
    Ok(())
}

fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files_below(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of `length` bytes of `path` from `offset`.
pub fn digest(path: &Path, offset: u64, length: u64) -> Result<Vec<u8>> {
    use std::io::{Seek, SeekFrom};
    let mut file = fs::File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut sha256 = Sha256::new();
    let copied = std::io::copy(&mut file.take(length), &mut sha256)?;
    if copied != length {
        bail!("{} is too short", path.display());
    }
    Ok(sha256.finalize().to_vec())
}
