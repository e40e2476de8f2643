//! Private keys that never leave a token: a TPM, a secure element, a smart card, by the token's own PKCS#11 module.
//!
//! A module is a foreign library, loaded when it is needed. It runs in a process of its own (`worker`), which ends with
//! each answer: one that hangs or crashes costs an attempt and not the agent, and a token may go and come back.

mod der;
mod key;
mod refused;
mod token;
mod uri;
mod worker;

pub use der::ecdsa_signature;
pub use key::{Description, KeyKind, Scheme, TokenError};
pub use refused::keep_in;
pub use token::TokenKey;
pub use uri::{KeyUri, SCHEME};
pub use worker::{WORKER, describe, serve, sign};
