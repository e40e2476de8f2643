//! Local control: newline-delimited JSON over a Unix socket, for `fwupdatectl` and for the gateway's own
//! programs.
//!
//! A request is one line, `{"method":"install","params":{...}}`; its answer is one line, `{"result":...}` or
//! `{"error":{"code":"...","message":"..."}}`. `watch` is answered by a line for each change of the status
//! until either side closes. What the results hold is the agent's to say:
//!
//! | method | params | result |
//! |---|---|---|
//! | `status`, `watch` | none | the reported properties: `firmwareStatus` and so on, and `fwupdate` |
//! | `install` | as `firmwareUpdate`, or `file` (an absolute path) in place of `fwPackageUri` | `operationId` |
//! | `cancel`, `approve` | `operationId` | `operationId` |
//! | `defer` | `operationId`, `until` (RFC 3339) | `operationId` |
//! | `rollback` | none | `operationId` |
//! | `history` | none | `{"history": [...]}`, each as `fwupdate.last`, newest first |
//! | `slots` | none | `{"bootedSlot": "A", "slots": {"A": {"version", "state"}, ...}}` |
//! | `doctor` | none | `{"findings": [{"check", "status": "ok" or "warning" or "failed", "message"}]}` |

mod client;
mod seats;
mod server;
mod wire;

pub use client::{Client, ClientError};
pub use server::{Call, Peer, Reply, bind, serve};
pub use wire::{ControlError, GROUP, Method, Request, SOCKET};
