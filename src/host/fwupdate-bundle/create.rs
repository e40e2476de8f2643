//! `create`: image + key -> bundle.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use fwupdate::bundle::{Index, MEMBERS, PATCH_MEMBERS, chunker, tar};
use fwupdate::cli::amount::size;
use fwupdate::failure::{Code, Failure};
use fwupdate::manifest::{BLOCK, Body, Digest, FORMAT, Image, ManifestError, PATCHES_CAP, SignatureList};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::files::{self, Replacement};
use crate::keys::SigningKey;
use crate::output::{Output, Result};
use crate::pack::{self, Packed};
use crate::patch::{self, MadePatch};
use crate::{content, held};

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("signing").required(true).args(["key", "unsigned"]))]
pub struct CreateOptions {
    /// The file-system image: a file or block device of a multiple of 4096 bytes.
    #[arg(long)]
    image: PathBuf,
    /// An old image, as the devices have it: adds a patch from it, so that they download less. May be repeated.
    #[arg(long, value_name = "OLD.img")]
    base: Vec<PathBuf>,
    /// The board that the image is for, as in the devices' settings.
    #[arg(long, value_name = "BOARD")]
    compatible: String,
    /// The image's version, as devices report it.
    #[arg(long = "version", value_name = "V")]
    release: String,
    /// Required. A number that never falls: devices take no bundle below the highest one that they committed. Begin
    /// with 1, and raise it with a release that closes a hole which older ones have.
    #[arg(long, value_name = "N")]
    pub security_version: Option<u64>,
    /// Pack what does not look like the content of a slot, too: a disk, an archive, a text, nothing but zeros.
    #[arg(long)]
    any_content: bool,
    /// RFC 3339; SOURCE_DATE_EPOCH or now if not given. Two builds at the same time are the same bytes.
    #[arg(long, value_parser = parse_time, value_name = "TIME")]
    created: Option<OffsetDateTime>,
    /// Private key in PEM, or in a token: a pkcs11: URI of a key on P-256. Several keys sign side by side.
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

pub fn create(options: &CreateOptions) -> Result<Output> {
    let keys: Vec<_> = options.key.iter().map(|path| SigningKey::load(path)).collect::<Result<_>>()?;
    let created = created(options)?;
    Body::check_identity(&options.compatible, &options.release, created).map_err(as_request)?;
    check_files(options)?;
    let mut frames = files::scratch(&options.output, "frames")?;
    let (packed, image_size) = pack_image(options, &mut frames)?;
    let mut body = body(options, created, image_size, &packed);
    body.validate()?;
    let mut patches = patches(options, &body, &packed)?;
    body.patches = patches.iter().map(|patch| patch.entry.clone()).collect();
    body.validate()?;
    let manifest = body.to_bytes()?;
    let signatures = sign(&keys, &manifest)?.to_bytes()?;
    let mut bundle = Replacement::of(&options.output)?;
    let mut out =
        Archive { out: &mut bundle.file, mtime: created.unix_timestamp().try_into().unwrap_or_default() };
    let contents = [manifest.as_slice(), &signatures, &packed.index];
    out.assemble(contents, (&mut frames, packed.payload_size), &mut patches)
        .map_err(files::at(&options.output))?;
    bundle.commit()?;
    answer(options, &manifest, &packed, image_size, &patches)
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

/// Refuses before the long work what can't end well.
fn check_files(options: &CreateOptions) -> Result<()> {
    if options.base.len() > PATCHES_CAP {
        let message = format!("--base is given {} times; the limit is {PATCHES_CAP}", options.base.len());
        return Err(Failure::new(Code::MalformedRequest, message));
    }
    for base in &options.base {
        if held::is_bundle(base)? {
            let what = "it is a bundle; --base needs the image in it";
            return Err(files::wrong(Code::MalformedRequest, base, what));
        }
    }
    for image in options.base.iter().chain([&options.image]).filter(|_| !options.any_content) {
        content::check(image)?;
    }
    for image in options.base.iter().chain([&options.image]) {
        whole_blocks(image)?;
    }
    files::check_output(&options.output, options.base.iter().chain([&options.image]).chain(&options.key))
}

fn whole_blocks(path: &Path) -> Result<u64> {
    let size = files::size(&files::open(path)?).map_err(files::at(path))?;
    if size == 0 || size % u64::from(BLOCK) != 0 {
        let what = format!(
            "its size of {size} bytes is no positive multiple of {BLOCK}; \
             pad it with `truncate -s %{BLOCK}` or build it in whole blocks"
        );
        return Err(files::wrong(Code::MalformedRequest, path, what));
    }
    Ok(size)
}

fn created(options: &CreateOptions) -> Result<OffsetDateTime> {
    let time = match (options.created, std::env::var("SOURCE_DATE_EPOCH")) {
        (Some(time), _) => time,
        (None, Err(_)) => OffsetDateTime::now_utc(),
        (None, Ok(text)) => {
            let seconds = text.trim().parse().ok();
            let time = seconds.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
            let message = "SOURCE_DATE_EPOCH must be seconds since 1970; correct or unset it";
            time.ok_or_else(|| Failure::new(Code::MalformedRequest, message))?
        }
    };
    // What is beyond all times in UTC is refused with all others that no bundle can have.
    let utc = time.checked_to_offset(time::UtcOffset::UTC).unwrap_or(time);
    Ok(utc.replace_nanosecond(0).unwrap_or(utc))
}

fn pack_image(options: &CreateOptions, frames: &mut File) -> Result<(Packed, u64)> {
    let size = whole_blocks(&options.image)?;
    let mut out = BufWriter::with_capacity(1 << 20, &mut *frames);
    let packed = pack::pack(&options.image, size, &chunker::default_chunking(), options.level, &mut out)?;
    out.flush().map_err(files::at(&options.output))?;
    drop(out);
    frames.rewind().map_err(files::at(&options.output))?;
    Ok((packed, size))
}

/// A patch from each base that helps.
fn patches(options: &CreateOptions, body: &Body, packed: &Packed) -> Result<Vec<MadePatch>> {
    if options.base.is_empty() {
        return Ok(Vec::new());
    }
    let index = Index::parse(packed.index.clone(), &body.image).map_err(files::in_file(&options.image))?;
    let chunking = &body.image.chunking;
    let target = patch::NewImage { path: &options.image, index: &index, chunking };
    let mut patches: Vec<MadePatch> = Vec::new();
    for base in &options.base {
        let frames = files::scratch(&options.output, "patch")?;
        let Some(patch) = patch::make(&target, base, options.level, frames)? else { continue };
        if patches.iter().any(|other| other.entry.base_sha256 == patch.entry.base_sha256) {
            let what = "this image is given twice; name each base once";
            return Err(files::wrong(Code::MalformedRequest, base, what));
        }
        patches.push(patch);
    }
    Ok(patches)
}

fn body(options: &CreateOptions, created: OffsetDateTime, size: u64, packed: &Packed) -> Body {
    Body {
        format: FORMAT,
        compatible: options.compatible.clone(),
        version: options.release.clone(),
        security_version: options.security_version.unwrap_or_default(),
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
        patches: Vec::new(),
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

/// The tar while it is written.
pub struct Archive<'a> {
    pub out: &'a mut File,
    pub mtime: u64,
}

impl Archive<'_> {
    /// Three members from memory, the frames from their file, the patches, and the end.
    fn assemble(
        &mut self,
        contents: [&[u8]; 3],
        (frames, size): (&mut File, u64),
        patches: &mut [MadePatch],
    ) -> io::Result<()> {
        for (name, mut content) in MEMBERS.iter().zip(contents) {
            let size = content.len() as u64;
            self.member(name, &mut content, size)?;
        }
        self.member(MEMBERS[3], frames, size)?;
        for ([index, payload], patch) in PATCH_MEMBERS.iter().zip(patches) {
            self.member(index, &mut patch.index.as_slice(), patch.entry.index_size)?;
            self.member(payload, &mut patch.frames, patch.entry.payload_size)?;
        }
        self.out.write_all(&[0; tar::END])
    }

    /// Writes one member: its header, its content, and zeros up to a whole block.
    pub fn member(&mut self, name: &str, content: &mut dyn Read, size: u64) -> io::Result<()> {
        let header = tar::build(name, size, self.mtime);
        self.out.write_all(&header.ok_or_else(|| io::Error::other("size or time exceeds ustar"))?)?;
        if io::copy(content, self.out)? != size {
            return Err(io::Error::other("the frames changed while they were copied"));
        }
        io::copy(&mut io::repeat(0).take(tar::padded(size) - size), self.out).map(drop)
    }
}

fn answer(
    options: &CreateOptions,
    manifest: &[u8],
    packed: &Packed,
    image_size: u64,
    patches: &[MadePatch],
) -> Result<Output> {
    let path: &Path = &options.output;
    let bundle_size = path.metadata().map_err(files::at(path))?.len();
    let digest = Digest::of(manifest);
    let signed = if options.unsigned { "not signed" } else { "signed" };
    let mut text = format!(
        "{}: {} of {} for {}, {signed}, manifest {digest}",
        path.display(),
        size(bundle_size),
        size(image_size),
        options.compatible,
    );
    for MadePatch { entry, count, .. } in patches {
        let bytes = size(entry.index_size + entry.payload_size);
        text += &format!("\npatch from {}: {bytes} in {count} frames", entry.base_sha256);
    }
    if patches.len() < options.base.len() {
        text += "\nfrom the other old images a patch saves nothing";
    }
    let entries: Vec<_> = patches.iter().map(|patch| &patch.entry).collect();
    let json = json!({
        "bundle": path, "bundleSize": bundle_size, "manifestSha256": digest,
        "imageSize": image_size, "imageSha256": packed.sha256, "payloadSize": packed.payload_size,
        "patches": entries,
    });
    Ok(Output { text, json })
}
