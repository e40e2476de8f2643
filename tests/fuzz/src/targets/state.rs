//! What the state folder may hold after years, other agents, and bad storage.

use std::fs;

use fwupdate::machine::{Boot, BootId, Event, Phase, RECORD_LIMIT, Record, step};
use fwupdate::manifest::Chunking;
use fwupdate::report;
use fwupdate::slot::{Armed, BootEnv, Slot};

use super::{now, scratch};

/// A record: whatever it says, start-up decides something, and the report can be made.
pub mod record {
    use super::*;

    pub fn run(bytes: &[u8]) -> bool {
        let Ok(mut record) = serde_json::from_slice::<Record>(bytes) else { return false };
        record.fit();
        for boot in boots() {
            let (mut next, mut effect) = step(&record, &boot, Event::Started);
            // As an agent would go on whose every effect fails.
            for _ in 0..8 {
                let view = report::View { booted: boot.booted, ..report::View::default() };
                let told = serde_json::to_string(&report::document(&next, &view)).unwrap();
                assert!(told.len() <= report::REPORT_LIMIT, "{} bytes are reported", told.len());
                if effect.is_none() {
                    break;
                }
                let failure = fwupdate::failure::Failure::new(fwupdate::failure::Code::Internal, "no");
                (next, effect) = step(&next, &boot, Event::Failed(failure));
            }
            next.fit();
            let again = serde_json::to_vec_pretty(&next).unwrap();
            assert!(again.len() <= RECORD_LIMIT, "{} bytes cannot be saved", again.len());
            assert_eq!(serde_json::from_slice::<Record>(&again).unwrap(), next);
        }
        true
    }

    fn boots() -> impl Iterator<Item = Boot> {
        let trial = Armed { slot: Slot::B, tries: 2 };
        let armed = BootEnv { primary: Slot::A, trial: Some(trial), fallback: None };
        let envs = [None, Some(BootEnv::only(Slot::A)), Some(BootEnv::only(Slot::B)), Some(armed)];
        let booted = [None, Some(Slot::A), Some(Slot::B)];
        booted.into_iter().flat_map(move |booted| {
            envs.map(|env| Boot {
                booted,
                env,
                rebuild: false,
                trial: None,
                boot_id: BootId("boot".into()),
                now: now(),
                uptime: 60,
            })
        })
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        let released = include_bytes!("../../../records/0.1.0-trying.json").to_vec();
        let idle = Record { phase: Phase::Idle, ..Record::default() };
        vec![released, serde_json::to_vec(&idle).unwrap()]
    }
}

/// The chunk map of a slot.
pub mod chunk_map {
    use super::*;

    fn rules() -> Chunking {
        let algorithm = "cdc-4k".into();
        Chunking { algorithm, block: 4096, min: 4096, average: 16384, max: 131_072, group: 1 << 20 }
    }

    pub fn run(bytes: &[u8]) -> bool {
        let path = scratch("chunks.A");
        fs::write(&path, bytes).unwrap();
        fwupdate::stage::parsers::chunk_map(&path, &rules()).is_some_and(|chunks| chunks <= bytes.len() / 20)
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        let line = b"fwupdate-chunks 1 cdc-4k 4096 4096 16384 131072 1048576\n";
        let records = [0u32, 1, 7].map(|block| [&block.to_le_bytes()[..], &[block as u8; 16]].concat());
        vec![[&line[..], &records.concat()].concat()]
    }
}
