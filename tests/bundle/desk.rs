//! What the tests of bundles share: a folder with a key and an image, and the commands that run in it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

pub const TOOL: &str = env!("CARGO_BIN_EXE_fwupdate-bundle");

pub const CREATED: &str = "2026-01-31T12:00:00Z";

/// A folder of one test, and the commands that run in it.
pub struct Desk(pub TempDir);

impl Desk {
    pub fn new() -> Desk {
        Desk(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    pub fn write(&self, name: &str, content: &[u8]) {
        fs::write(self.path(name), content).unwrap();
    }

    pub fn command<S: AsRef<OsStr>>(&self, program: &str, args: impl IntoIterator<Item = S>) -> Output {
        let mut command = Command::new(program);
        command.args(args).current_dir(self.0.path()).env_remove("SOURCE_DATE_EPOCH");
        command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{program}: {error}"))
    }

    /// Runs the tool with the words of `line`.
    pub fn tool(&self, line: &str) -> Output {
        self.command(TOOL, line.split_whitespace())
    }

    /// Runs the tool, which must succeed; returns its standard output.
    pub fn good(&self, line: &str) -> String {
        let output = self.tool(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.good(&format!("--json {line}"))).unwrap()
    }

    /// Runs the tool, which must end with `code`; returns its one sentence.
    pub fn bad(&self, line: &str, code: i32) -> String {
        let output = self.tool(line);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{line}: {message}");
        message
    }

    /// Runs another program with the words of `line`; `true` if it succeeds.
    pub fn runs(&self, line: &str) -> bool {
        let mut words = line.split_whitespace();
        self.command(words.next().unwrap(), words).status.success()
    }

    pub fn must(&self, line: &str) {
        assert!(self.runs(line), "{line}");
    }

    /// A member of a bundle, as `tar` extracts it.
    pub fn member(&self, bundle: &str, name: &str) -> Vec<u8> {
        let output = self.command("tar", ["-xOf", bundle, name]);
        assert!(output.status.success());
        output.stdout
    }

    /// The bytes of the signature at `position`, by way of the JSON alone.
    pub fn signature(&self, bundle: &str, position: usize) -> Vec<u8> {
        let list: Value = serde_json::from_slice(&self.member(bundle, "manifest.sig")).unwrap();
        let text = list["signatures"][position]["signature"].as_str().unwrap();
        data_encoding::BASE64.decode(text.as_bytes()).unwrap()
    }

    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Random blocks, text-like blocks and zeros: something of each kind that a file system holds.
pub fn image(seed: u64, blocks: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut image = Vec::with_capacity(blocks * 4096);
    while image.len() < blocks * 4096 {
        let run = 4096 * random.usize(1..40);
        let start = image.len();
        image.resize(start + run, 0);
        // An image of zeros alone is refused.
        match if start == 0 { 0 } else { random.u8(0..3) } {
            0 => random.fill(&mut image[start..]),
            1 => image[start..].iter_mut().for_each(|byte| *byte = random.u8(b'a'..b'f')),
            _ => {}
        }
    }
    image.truncate(blocks * 4096);
    image
}

/// A desk with a key in `keys/` and an image in `image`.
pub fn desk(blocks: usize) -> Desk {
    let desk = Desk::new();
    desk.good("keygen --out keys");
    desk.write("image", &image(1, blocks));
    desk
}

/// The command that packs `image` into `out`, but for the keys.
pub fn create(image: &str, out: &str) -> String {
    format!(
        "create --image {image} --compatible gw-1 --version 1.2.3 --security-version 1 --created {CREATED} \
         --level 3 -o {out}"
    )
}

pub fn signed(image: &str, out: &str) -> String {
    create(image, out) + " --key keys/release.key.pem"
}

pub fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}
