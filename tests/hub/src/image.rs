//! Root file systems for the simulated gateway: real ext4 images, made and read without root by e2fsprogs.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Where Debian keeps `mkfs.ext4` and `debugfs`; a user's PATH often lacks it.
const SBIN: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// Makes an ext4 image of `size` bytes at `image` that holds the files of `folder`.
pub fn make(image: &Path, size: u64, folder: &Path) -> io::Result<()> {
    fs::File::create(image)?.set_len(size)?;
    // No journal and no reserved blocks: the image is small and read only.
    let flags = ["-q", "-F", "-b", "4096", "-m", "0", "-O", "^has_journal,^resize_inode", "-d"];
    run(tool("mkfs.ext4").args(flags).arg(folder).arg(image)).map(drop)
}

/// Copies `/etc` of the file system in `image` to `into`, which is emptied first. Without a readable file system
/// there `into` stays empty.
pub fn extract_etc(image: &Path, into: &Path) -> io::Result<()> {
    match fs::remove_dir_all(into) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => fs::create_dir_all(into)?,
    }
    // It ends with 0 whatever happens; that the owner cannot be set is one of its complaints.
    run(tool("debugfs").arg("-R").arg(format!("rdump /etc {}", into.display())).arg(image)).map(drop)
}

fn tool(name: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(name);
    command.env("PATH", format!("{path}:{SBIN}")).stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> io::Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| {
        io::Error::new(error.kind(), format!("{name} of package e2fsprogs does not run: {error}"))
    })?;
    if output.status.success() {
        return Ok(output);
    }
    Err(io::Error::other(format!("{name} failed: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("root/etc/app")).unwrap();
        fs::write(path("root/etc/os-release"), "IMAGE_VERSION=1.2\n").unwrap();
        fs::write(path("root/etc/app/conf"), "port=80\n").unwrap();
        make(&path("image"), 2 << 20, &path("root")).unwrap();
        extract_etc(&path("image"), &path("out")).unwrap();
        assert_eq!(fs::read_to_string(path("out/etc/os-release")).unwrap(), "IMAGE_VERSION=1.2\n");
        assert_eq!(fs::read_to_string(path("out/etc/app/conf")).unwrap(), "port=80\n");

        fs::write(path("noise"), vec![7; 1 << 20]).unwrap();
        extract_etc(&path("noise"), &path("out")).unwrap();
        assert_eq!(fs::read_dir(path("out")).unwrap().count(), 0);
    }
}
