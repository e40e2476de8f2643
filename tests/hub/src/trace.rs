//! The bytes of MQTT as they went over the wire, recorded while somebody asks for it: packet by packet, both ways.
//!
//! Whatever speaks MQTT with a device records here, so that two clients can be compared byte for byte.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Serialize, Serializer};

use crate::lock;

/// Packets kept; what comes later is not recorded.
const KEPT: usize = 10_000;

/// One packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Frame {
    /// Rises from connection to connection.
    pub connection: u64,
    pub from_device: bool,
    /// The whole packet, fixed header included.
    #[serde(serialize_with = "hex")]
    pub bytes: Vec<u8>,
}

fn hex<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&data_encoding::HEXLOWER.encode(bytes))
}

/// The recorder; off until it is started.
#[derive(Debug, Default)]
pub struct Trace {
    on: AtomicBool,
    frames: Mutex<Vec<Frame>>,
}

impl Trace {
    /// Forgets what was recorded, and records from now on.
    pub fn start(&self) {
        lock(&self.frames).clear();
        self.on.store(true, Ordering::Relaxed);
    }

    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Records a packet if somebody asked for it.
    pub fn record(&self, connection: u64, from_device: bool, bytes: &[u8]) {
        if self.is_on() {
            let mut frames = lock(&self.frames);
            if frames.len() < KEPT {
                frames.push(Frame { connection, from_device, bytes: bytes.to_vec() });
            }
        }
    }

    pub fn frames(&self) -> Vec<Frame> {
        lock(&self.frames).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_records_only_when_asked_and_starts_anew() {
        let trace = Trace::default();
        trace.record(1, true, b"x");
        assert_eq!(trace.frames(), []);
        trace.start();
        trace.record(2, false, b"\x20\x02");
        assert_eq!(serde_json::to_value(trace.frames()).unwrap()[0]["bytes"], "2002");
        trace.start();
        assert_eq!(trace.frames(), []);
    }
}
