//! What one update is made of: the record that outlives power cuts, the phases, the events that move it on and
//! the effects it asks for. Values only; the rules are in `step` and `start`.

mod desired;
mod fit;
mod moves;
mod operation;
mod record;
mod start;
mod step;
#[cfg(test)]
mod tests;
mod turn;

pub use desired::{ACCEPTED, COMMITTED, Desired, SUPERSEDED};
pub use fit::RECORD_LIMIT;
pub use operation::{BootId, Extra, Hold, ImageInfo, Operation, Origin, Phase, Plan, Trial};
pub use record::{
    Abilities, Last, Outcome, Quarantined, RECORD_VERSION, Record, SavedProgress, SlotInfo, SlotState, Slots,
    Times,
};
pub use start::is_decided;
pub use step::step;
pub use turn::{Boot, Effect, Event};
