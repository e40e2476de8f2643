//! A bench for the tests of this edge: a bundle on a server, a slot and a client.

pub mod medium;
mod server;

use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::bundle::testing::{self as bundles, Parts};
use crate::stage::*;

pub use server::{Act, Request, Server, download, header};

/// Opens with lists in memory, for one signature.
pub async fn opened(
    location: BundleSource,
    http: &Http,
    meter: Arc<Meter>,
    keys: &crate::manifest::TrustedKeys,
    pin: Option<crate::manifest::Digest>,
) -> Result<Bundle, StageError> {
    let workspace = &Workspace::default();
    open(Opening { location, http, meter, keys, required: 1, pin, workspace }).await
}

/// An image, its bundle on a server, and a file-backed slot.
pub struct Bench {
    pub folder: TempDir,
    pub image: Vec<u8>,
    pub server: Server,
    pub slot: PathBuf,
    pub progress: watch::Sender<Progress>,
}

impl Bench {
    /// `image` in a slot that is larger by `spare`, which holds other bytes at first.
    pub async fn new(image: Vec<u8>, spare: usize) -> Bench {
        let bundle = parts(&image).join();
        Bench::serving(image, bundle, spare).await
    }

    /// The same with a bundle of `image` that was made otherwise.
    pub async fn serving(image: Vec<u8>, bundle: Vec<u8>, spare: usize) -> Bench {
        let server = Server::start(bundle).await;
        let folder = tempfile::tempdir().unwrap();
        let slot = folder.path().join("slot");
        std::fs::write(&slot, vec![0xaa; image.len() + spare]).unwrap();
        Bench { folder, image, server, slot, progress: watch::Sender::default() }
    }

    pub fn target(&self) -> Target {
        Target::acquire(&self.slot, &[]).unwrap()
    }

    pub async fn open(&self, http: &Http, meter: Meter) -> Result<Bundle, StageError> {
        let keys = bundles::trust(1);
        let workspace = Workspace::on_disk(self.folder.path());
        open(Opening {
            location: BundleSource::Http(self.server.url()),
            http,
            meter: Arc::new(meter),
            keys: &keys,
            required: 1,
            pin: None,
            workspace: &workspace,
        })
        .await
    }

    /// Where the payload begins in the bundle.
    pub async fn payload(&self) -> u64 {
        let meter = Meter::new(0, None, None);
        self.open(&self.server.http(), meter).await.unwrap().layout().payload().start
    }

    /// Prepare and stage, as the agent does it.
    pub async fn update(&self) -> Result<(), StageError> {
        self.update_with(&self.server.http(), None, Meter::new(0, None, None)).await
    }

    pub async fn update_with(
        &self,
        http: &Http,
        seed: Option<&std::path::Path>,
        meter: Meter,
    ) -> Result<(), StageError> {
        self.update_by(http, seed, None, meter).await
    }

    pub async fn update_by(
        &self,
        http: &Http,
        seed: Option<&std::path::Path>,
        maps: Option<&Maps>,
        meter: Meter,
    ) -> Result<(), StageError> {
        self.run(http, seed.map(Booted::from), maps, meter, &CancellationToken::new()).await
    }

    pub async fn update_from(
        &self,
        http: &Http,
        seed: Option<Booted<'_>>,
        meter: Meter,
        cancel: &CancellationToken,
    ) -> Result<(), StageError> {
        self.run(http, seed, None, meter, cancel).await
    }

    async fn run(
        &self,
        http: &Http,
        seed: Option<Booted<'_>>,
        maps: Option<&Maps>,
        meter: Meter,
        cancel: &CancellationToken,
    ) -> Result<(), StageError> {
        let bundle = self.open(http, meter).await?;
        let target = self.target();
        let index = bundle.index().await?;
        stage(&bundle, index, Staging { seed, maps, ..Staging::of(&target, &self.progress, cancel) }).await
    }

    /// The slot's bytes.
    pub fn written(&self) -> Vec<u8> {
        std::fs::read(&self.slot).unwrap()
    }

    pub fn assert_complete(&self) {
        let written = self.written();
        assert!(written[..self.image.len()] == self.image, "the slot does not hold the image");
        let tail = written.len().saturating_sub(GUARD as usize).max(self.image.len());
        assert!(written[tail..].iter().all(|byte| *byte == 0), "the slot's end is not cleared");
    }

    pub fn assert_not_loadable(&self) {
        let written = self.written();
        assert!(written[..GUARD as usize].iter().all(|byte| *byte == 0), "the first MiB is not zero");
    }
}

pub fn parts(image: &[u8]) -> Parts {
    bundles::parts(image, "board", "1.0")
}

/// `mib` of noise with runs of zeros and of compressible text in it; the same for the same seed.
pub fn image(seed: u64, mib: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut image = vec![0; mib << 20];
    for (n, part) in image.chunks_mut(128 * 1024).enumerate() {
        match n % 8 {
            5 => {}
            6 => part.iter_mut().enumerate().for_each(|(n, byte)| *byte = (n / 4096) as u8),
            _ => random.fill(part),
        }
    }
    image
}
