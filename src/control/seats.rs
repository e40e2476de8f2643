//! How many connections a user may have at the control socket. Nobody is turned away, for then whoever came first could
//! keep the others out: a user with too many, or the one with the most when all together are too many, loses the oldest
//! that is idle. Root and the agent's own user never lose one to others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_util::sync::CancellationToken;

/// Connections of one user.
const OF_ONE: usize = 16;
/// Connections of all users together, those of root apart.
const OF_ALL: usize = 32;

/// A connection's place.
pub struct ClientSeat(Arc<Occupant>);

struct Occupant {
    uid: u32,
    /// Root, or the agent's own user.
    trusted: bool,
    /// The agent works on an answer for it.
    busy: AtomicBool,
    lost: CancellationToken,
}

impl ClientSeat {
    /// Ends when the place is somebody else's.
    pub async fn lost(&self) {
        self.0.lost.cancelled().await;
    }

    /// Until it is dropped, others are given up first.
    pub fn busy(&self) -> Busy<'_> {
        self.0.busy.store(true, Ordering::Relaxed);
        Busy(&self.0.busy)
    }
}

pub struct Busy<'a>(&'a AtomicBool);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// All places that are taken, the oldest first.
#[derive(Default)]
pub struct Seats(Vec<Arc<Occupant>>);

impl Seats {
    /// A place for a connection of `uid`.
    pub fn take(&mut self, uid: u32, trusted: bool) -> ClientSeat {
        // Those that are gone are held by nobody else.
        self.0.retain(|place| Arc::strong_count(place) > 1);
        if self.count(uid) >= OF_ONE {
            self.give_up(uid);
        }
        if !trusted && self.0.iter().filter(|place| !place.trusted).count() >= OF_ALL {
            let others = self.0.iter().filter(|place| !place.trusted).map(|place| place.uid);
            if let Some(most) = others.max_by_key(|uid| self.count(*uid)) {
                self.give_up(most);
            }
        }
        let (busy, lost) = (AtomicBool::new(false), CancellationToken::new());
        let place = Arc::new(Occupant { uid, trusted, busy, lost });
        self.0.push(place.clone());
        ClientSeat(place)
    }

    fn count(&self, uid: u32) -> usize {
        self.0.iter().filter(|place| place.uid == uid).count()
    }

    /// Ends the oldest connection of `uid`, one that is idle if there is any.
    fn give_up(&mut self, uid: u32) {
        let own = |place: &Arc<Occupant>| place.uid == uid;
        let idle = |place: &Arc<Occupant>| own(place) && !place.busy.load(Ordering::Relaxed);
        let found = self.0.iter().position(idle).or_else(|| self.0.iter().position(own));
        if let Some(index) = found {
            self.0.remove(index).lost.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alive(seats: &[ClientSeat]) -> Vec<usize> {
        (0..seats.len()).filter(|index| !seats[*index].0.lost.is_cancelled()).collect()
    }

    #[test]
    fn a_user_with_too_many_loses_the_oldest_idle_one() {
        let mut places = Seats::default();
        let mut taken: Vec<ClientSeat> = (0..OF_ONE).map(|_| places.take(1000, false)).collect();
        let busy = taken[0].busy();
        let newest = places.take(1000, false);
        assert!(!newest.0.lost.is_cancelled());
        assert_eq!(alive(&taken), [0].into_iter().chain(2..OF_ONE).collect::<Vec<_>>());
        drop(busy);
        taken.push(newest);
        taken.push(places.take(1000, false));
        assert_eq!(alive(&taken), (2..OF_ONE + 2).collect::<Vec<_>>());
    }

    #[test]
    fn root_gets_in_among_many_users_and_takes_from_nobody_and_nobody_from_root() {
        let mut places = Seats::default();
        let root: Vec<ClientSeat> = (0..OF_ONE).map(|_| places.take(0, true)).collect();
        let users: Vec<ClientSeat> = (0..200).map(|user| places.take(1000 + user % 50, false)).collect();
        assert_eq!((alive(&root).len(), alive(&users).len()), (OF_ONE, OF_ALL));
        assert!(alive(&users).contains(&199), "the newest is served");
        let last = places.take(0, true);
        assert!(!last.0.lost.is_cancelled());
        assert_eq!((alive(&root).len(), alive(&users).len()), (OF_ONE - 1, OF_ALL));
    }

    #[test]
    fn places_of_those_who_left_are_free() {
        let mut places = Seats::default();
        for _ in 0..100 {
            drop(places.take(1000, false));
        }
        let kept: Vec<ClientSeat> = (0..OF_ONE).map(|_| places.take(1000, false)).collect();
        assert_eq!(alive(&kept).len(), OF_ONE);
    }
}
