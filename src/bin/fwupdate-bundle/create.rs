//! `create`: image + key -> bundle.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use fwupdate::bundle::{MEMBERS, chunker, tar};
use fwupdate::failure::{Code, Failure};
use fwupdate::manifest::{BLOCK, Body, Digest, FORMAT, Image, ManifestError, SignatureList};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::files::{self, Replacement};
use crate::keys::SigningKey;
use crate::pack::{self, Packed, Source};
use crate::progress::size;
use crate::{Answer, Result};

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("signing").required(true).args(["key", "unsigned"]))]
pub struct Options {
    /// The file-system image: a file or block device of a multiple of 4096 bytes.
    #[arg(long)]
    image: PathBuf,
    /// The board that the image is for, as in the devices' settings.
    #[arg(long, value_name = "BOARD")]
    compatible: String,
    /// The image's version, as devices report it.
    #[arg(long = "version", value_name = "V")]
    release: String,
    /// Devices never go below the highest one that they ran.
    #[arg(long, default_value_t = 0, value_name = "N")]
    security_version: u64,
    /// RFC 3339; SOURCE_DATE_EPOCH or now if not given. Two builds at the same time are the same bytes.
    #[arg(long, value_parser = parse_time, value_name = "TIME")]
    created: Option<OffsetDateTime>,
    /// Private key in PEM; several keys sign side by side.
    #[arg(long, value_name = "KEY.pem")]
    key: Vec<PathBuf>,
    /// No signature yet: for a key in an HSM. No device installs it before `sign`.
    #[arg(long, conflicts_with = "key")]
    unsigned: bool,
    /// zstd level.
    #[arg(long, default_value = "19", value_parser = clap::value_parser!(i32).range(1..=22))]
    level: i32,
    /// The bundle to write.
    #[arg(short, long, value_name = "OUT.fwb")]
    output: PathBuf,
}

fn parse_time(text: &str) -> Result<OffsetDateTime, String> {
    OffsetDateTime::parse(text, &Rfc3339).map_err(|_| "it must be like 2026-01-31T12:00:00Z".into())
}

/// Packs, signs and writes.
pub fn create(options: &Options) -> Result<Answer> {
    let keys: Vec<_> = options.key.iter().map(|path| SigningKey::load(path)).collect::<Result<_>>()?;
    let created = created(options)?;
    Body::check_identity(&options.compatible, &options.release, created).map_err(as_request)?;
    refuse_same_file(&options.image, &options.output)?;
    let mut frames = files::scratch(&options.output)?;
    let (packed, image_size) = pack_image(options, &mut frames)?;
    let body = body(options, created, image_size, &packed);
    body.validate()?;
    let manifest = body.to_bytes()?;
    let signatures = sign(&keys, &manifest)?.to_bytes()?;
    let mut bundle = Replacement::of(&options.output)?;
    let mtime = u64::try_from(created.unix_timestamp()).unwrap_or_default();
    let contents = [manifest.as_slice(), &signatures, &packed.index];
    assemble(&mut bundle.file, contents, &mut frames, packed.payload_size, mtime)
        .map_err(files::at(&options.output))?;
    bundle.commit()?;
    answer(options, &manifest, &packed, image_size)
}

/// What the caller typed is a bad request, not a bad bundle.
fn as_request(error: ManifestError) -> Failure {
    match error {
        ManifestError::Field { field, reason } => {
            Failure::new(Code::MalformedRequest, format!("--{field} can't be used: {reason}"))
        }
        other => other.into(),
    }
}

/// `-o` must not name the image: the rename at the end would put the bundle in its place.
fn refuse_same_file(image: &Path, output: &Path) -> Result<()> {
    match (image.canonicalize(), output.canonicalize()) {
        (Ok(image), Ok(output)) if image == output => {
            let message = format!("{}: it is the image itself; name another output", output.display());
            Err(Failure::new(Code::MalformedRequest, message))
        }
        _ => Ok(()),
    }
}

fn created(options: &Options) -> Result<OffsetDateTime> {
    let given = std::env::var("SOURCE_DATE_EPOCH").ok().filter(|_| options.created.is_none());
    let epoch = given.map(|text| {
        let seconds = text.trim().parse().ok();
        seconds.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok()).ok_or_else(|| {
            Failure::new(
                Code::MalformedRequest,
                "SOURCE_DATE_EPOCH must be seconds since 1970; correct or unset it",
            )
        })
    });
    let time = options.created.map_or_else(|| epoch.unwrap_or_else(|| Ok(OffsetDateTime::now_utc())), Ok)?;
    Ok(time.to_offset(time::UtcOffset::UTC).replace_nanosecond(0).unwrap_or(time))
}

fn pack_image(options: &Options, frames: &mut File) -> Result<(Packed, u64)> {
    let path = options.image.as_path();
    let mut image = File::open(path).map_err(files::at(path))?;
    let size = image
        .seek(SeekFrom::End(0))
        .and_then(|size| image.rewind().map(|()| size))
        .map_err(files::at(path))?;
    if size == 0 || size % u64::from(BLOCK) != 0 {
        let message = format!(
            "{}: its size of {size} bytes is no positive multiple of {BLOCK}; \
             pad it with `truncate -s %{BLOCK}` or build it in whole blocks",
            path.display()
        );
        return Err(Failure::new(Code::MalformedRequest, message));
    }
    let mut reader = BufReader::with_capacity(1 << 20, image);
    let source = Source { path, reader: &mut reader, size };
    let mut out = BufWriter::with_capacity(1 << 20, &mut *frames);
    let packed = pack::pack(source, &chunker::default_chunking(), options.level, &mut out)?;
    out.flush().map_err(files::at(&options.output))?;
    drop(out);
    frames.rewind().map_err(files::at(&options.output))?;
    Ok((packed, size))
}

fn body(options: &Options, created: OffsetDateTime, size: u64, packed: &Packed) -> Body {
    Body {
        format: FORMAT,
        compatible: options.compatible.clone(),
        version: options.release.clone(),
        security_version: options.security_version,
        created,
        image: Image {
            size,
            sha256: packed.sha256,
            codec: "zstd".into(),
            index_size: packed.index.len() as u64,
            index_sha256: Digest::of(&packed.index),
            payload_size: packed.payload_size,
            chunking: chunker::default_chunking(),
        },
        extensions: serde_json::Map::new(),
    }
}

fn sign(keys: &[SigningKey], manifest: &[u8]) -> Result<SignatureList> {
    let mut list = SignatureList::default();
    for key in keys {
        let signature = key.sign(manifest)?;
        if list.signatures.iter().any(|other| other.key_id == signature.key_id) {
            let message = format!("key {} is given twice; name each key once", signature.key_id);
            return Err(Failure::new(Code::MalformedRequest, message));
        }
        list.signatures.push(signature);
    }
    Ok(list)
}

/// Writes the tar: three members from memory, the frames from their file, and the end.
fn assemble(
    out: &mut File,
    contents: [&[u8]; 3],
    frames: &mut File,
    payload_size: u64,
    mtime: u64,
) -> io::Result<()> {
    for (name, content) in MEMBERS.iter().zip(contents) {
        write_header(out, name, content.len() as u64, mtime)?;
        out.write_all(content)?;
        pad(out, content.len() as u64)?;
    }
    write_header(out, MEMBERS[3], payload_size, mtime)?;
    let copied = io::copy(frames, out)?;
    if copied != payload_size {
        return Err(io::Error::other("the frames changed while they were copied"));
    }
    pad(out, payload_size)?;
    out.write_all(&[0; tar::END])
}

/// Writes the header of a member.
pub fn write_header(out: &mut File, name: &str, size: u64, mtime: u64) -> io::Result<()> {
    let header =
        tar::build(name, size, mtime).ok_or_else(|| io::Error::other("size or time exceeds ustar"))?;
    out.write_all(&header)
}

/// Writes zeros after a content of `size` bytes up to a whole block.
pub fn pad(out: &mut File, size: u64) -> io::Result<()> {
    io::copy(&mut io::Read::take(io::repeat(0), tar::padded(size) - size), out).map(drop)
}

fn answer(options: &Options, manifest: &[u8], packed: &Packed, image_size: u64) -> Result<Answer> {
    let path: &Path = &options.output;
    let bundle_size = path.metadata().map_err(files::at(path))?.len();
    let digest = Digest::of(manifest);
    let signed = if options.unsigned { "not signed" } else { "signed" };
    let text = format!(
        "{}: {} of {} for {}, {signed}, manifest {digest}",
        path.display(),
        size(bundle_size),
        size(image_size),
        options.compatible,
    );
    let json = json!({
        "bundle": path, "bundleSize": bundle_size, "manifestSha256": digest,
        "imageSize": image_size, "imageSha256": packed.sha256, "payloadSize": packed.payload_size,
    });
    Ok(Answer { text, json })
}
