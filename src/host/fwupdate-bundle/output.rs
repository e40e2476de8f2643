//! What a command gives back to the program: something to say, or a failure.

use fwupdate::failure::Failure;

pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// What a command has to say: a text for people and an object for scripts.
pub struct Output {
    pub text: String,
    pub json: serde_json::Value,
}
