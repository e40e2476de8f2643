//! What is told of staging while it runs.

/// How far staging has come. All figures are bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    pub step: Step,
    /// The current step's work: the size of the image, or while surveying what is read of the slots.
    pub total: u64,
    pub done: u64,
    /// Body bytes received over the network for this operation, those of earlier runs included.
    pub downloaded: u64,
    /// What `downloaded` will be at the end if no connection breaks; known once the slots were surveyed.
    pub expected_download: u64,
    /// Bytes of the image that were found in one of the slots instead of being fetched.
    pub reused: u64,
}

/// The steps of `stage`, in order; each runs `done` from 0 to `total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Step {
    /// Looks for chunks that the slots already hold.
    #[default]
    Surveying,
    /// Fetches, copies and writes the rest.
    Writing,
    /// Reads the slot back from the medium.
    ReadingBack,
}
