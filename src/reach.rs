//! TCP to a host that has several addresses: the first that answers is taken, as RFC 8305 ("happy eyeballs") says.
//!
//! An address that swallows packets answers nothing, not even with an error, and would cost all the patience there is
//! if it were waited for. So the next one is tried a quarter of a second later, the families by turns, and those that
//! led to nothing lately come last.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, sleep_until, timeout_at};

/// Between two attempts (RFC 8305, section 8: Connection Attempt Delay).
const STAGGER: Duration = Duration::from_millis(250);
/// Addresses that are tried: a name server may send any number.
const MOST: usize = 16;

/// No address of the host could be reached.
#[derive(Debug)]
pub enum Unreached {
    /// It has none.
    Unresolved(io::Error),
    /// Each that was tried, and why not.
    Tried(Vec<(SocketAddr, String)>),
}

impl fmt::Display for Unreached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unreached::Unresolved(error) => write!(f, "its name leads to no address: {error}"),
            Unreached::Tried(tried) => {
                let each: Vec<String> = tried.iter().map(|(at, why)| format!("{}: {why}", at.ip())).collect();
                f.write_str(&each.join("; "))
            }
        }
    }
}

impl std::error::Error for Unreached {}

/// Addresses that led to nothing lately, the newest last; copies share it.
#[derive(Debug, Clone, Default)]
pub struct Memory(Arc<Mutex<VecDeque<SocketAddr>>>);

impl Memory {
    /// Whether a connection to this address was of use.
    pub fn judge(&self, address: Option<SocketAddr>, useful: bool) {
        match address {
            Some(address) if useful => self.pleased(address),
            Some(address) => self.disappointed(address),
            None => {}
        }
    }

    /// Something behind this address kept a connection from being of use.
    fn disappointed(&self, address: SocketAddr) {
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|known| *known != address);
        list.push_back(address);
        while list.len() > MOST {
            list.pop_front();
        }
    }

    /// A connection to this address was of use.
    fn pleased(&self, address: SocketAddr) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|known| *known != address);
    }

    /// 0 for an address that nothing is known against; the longer ago, the sooner it is tried again.
    fn rank(&self, address: &SocketAddr) -> usize {
        let list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        list.iter().position(|known| known == address).map_or(0, |position| position.saturating_add(1))
    }
}

/// Connects to `host` within `limit`, name resolution included.
pub async fn connect(
    host: &str,
    port: u16,
    limit: Duration,
    memory: &Memory,
) -> Result<TcpStream, Unreached> {
    let until = crate::clock::after(Instant::now(), limit);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let found = match timeout_at(until, lookup_host((host, port))).await {
        Ok(found) => found.map_err(Unreached::Unresolved)?.collect(),
        Err(_) => return Err(Unreached::Unresolved(io::Error::other("the name server does not answer"))),
    };
    race(in_order(found, memory), until).await
}

/// Connects to one of these addresses, which the caller looked up and approved, within `limit`.
pub async fn connect_to(
    addresses: Vec<SocketAddr>,
    limit: Duration,
    memory: &Memory,
) -> Result<TcpStream, Unreached> {
    race(in_order(addresses, memory), crate::clock::after(Instant::now(), limit)).await
}

/// The families by turns, beginning with that of the first address, which the system prefers (RFC 6724).
fn in_order(found: Vec<SocketAddr>, memory: &Memory) -> VecDeque<SocketAddr> {
    let first = found.first().is_some_and(SocketAddr::is_ipv4);
    let (one, other): (Vec<SocketAddr>, Vec<SocketAddr>) =
        found.into_iter().partition(|address| address.is_ipv4() == first);
    let turns = |list: Vec<SocketAddr>, family| {
        list.into_iter().zip(0_usize..).map(move |(at, turn)| (turn, family, at))
    };
    let mut order: Vec<_> = turns(one, 0).chain(turns(other, 1)).collect();
    order.sort_by_key(|(turn, family, address)| (memory.rank(address), *turn, *family));
    let mut seen = BTreeSet::new();
    order.retain(|(.., address)| seen.insert(*address));
    order.into_iter().map(|(.., address)| address).take(MOST).collect()
}

/// Begins with one address after the other, each a little later than the one before or when that failed.
async fn race(mut order: VecDeque<SocketAddr>, until: Instant) -> Result<TcpStream, Unreached> {
    let (mut running, mut tried) = (FuturesUnordered::new(), BTreeMap::<SocketAddr, String>::new());
    let mut next = Instant::now();
    while !(running.is_empty() && order.is_empty()) {
        tokio::select! {
            Some((address, done)) = running.next() => match io::Result::from(done) {
                Ok(stream) => return Ok(stream),
                Err(why) => {
                    tried.insert(address, why.to_string());
                    next = Instant::now();
                }
            },
            () = sleep_until(next), if !order.is_empty() => {
                let address = order.pop_front();
                tried.extend(address.map(|address| (address, "no answer".to_owned())));
                running.extend(address.map(attempt));
                next = crate::clock::after(Instant::now(), STAGGER);
            }
            () = sleep_until(until) => break,
        }
    }
    Err(Unreached::Tried(tried.into_iter().collect()))
}

async fn attempt(address: SocketAddr) -> (SocketAddr, io::Result<TcpStream>) {
    let done = TcpStream::connect(address).await;
    (address, done.and_then(|stream| stream.set_nodelay(true).map(|()| stream)))
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    use tokio::net::{TcpListener, TcpSocket};

    /// Runs `test` where `name` has the addresses 127.0.0.1 and 127.0.0.2, in this order: by an `/etc/hosts` of its own,
    /// which needs root.
    pub(crate) fn with_two_addresses<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F + Send) {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: a namespace of its own needs root");
            return;
        }
        std::thread::scope(|scope| {
            let run = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNS).unwrap();
                let hosts = tempfile::NamedTempFile::new().unwrap();
                std::fs::write(hosts.path(), format!("127.0.0.1 {name}\n127.0.0.2 {name}\n")).unwrap();
                let none = None::<&str>;
                mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
                mount(Some(hosts.path()), "/etc/hosts", none, MsFlags::MS_BIND, none).unwrap();
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let found = lookup_host((name, 1)).await.unwrap();
                    let found: Vec<String> = found.map(|address| address.ip().to_string()).collect();
                    assert_eq!(found, ["127.0.0.1", "127.0.0.2"]);
                    test().await;
                });
            });
            run.join().unwrap();
        });
    }

    /// A port whose packets vanish: nobody takes connections from its queue, which is full.
    pub(crate) struct Swallower {
        pub address: SocketAddr,
        _kept: (TcpListener, Vec<TcpStream>),
    }

    impl Swallower {
        pub(crate) async fn at(address: SocketAddr) -> Swallower {
            let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.unwrap();
            socket.set_reuseaddr(true).unwrap();
            socket.bind(address).unwrap();
            let listener = socket.listen(1).unwrap();
            let (address, mut kept) = (listener.local_addr().unwrap(), Vec::new());
            let soon = Duration::from_millis(300);
            while let Ok(stream) = tokio::time::timeout(soon, TcpStream::connect(address)).await {
                kept.push(stream.unwrap());
            }
            Swallower { address, _kept: (listener, kept) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Swallower;
    use super::*;
    use tokio::net::TcpListener;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    /// An address at which nobody listens.
    async fn refusing() -> SocketAddr {
        let closed = TcpListener::bind("127.0.0.3:0").await.unwrap();
        closed.local_addr().unwrap()
    }

    #[tokio::test]
    async fn addresses_of_one_family_that_swallow_or_refuse_cost_moments_and_no_connection() {
        let swallower = Swallower::at(at("127.0.0.2:0")).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        let began = Instant::now();
        let order = [swallower.address, refusing().await, good];
        let stream = race(order.into(), soon()).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        let took = began.elapsed();
        assert!(took >= STAGGER && took < STAGGER * 8, "{took:?}");
    }

    #[tokio::test]
    async fn the_error_names_each_address_with_its_reason() {
        let swallower = Swallower::at(at("127.0.0.2:0")).await;
        let until = Instant::now() + Duration::from_secs(1);
        let error = race([swallower.address, refusing().await].into(), until).await.unwrap_err().to_string();
        assert!(error.contains("127.0.0.2: no answer"), "{error}");
        assert!(error.contains("127.0.0.3: Connection refused"), "{error}");
        let error = connect("no-such-name.invalid", 1, Duration::from_secs(5), &Memory::default()).await;
        assert!(error.unwrap_err().to_string().starts_with("its name leads to no address: "));
    }

    #[test]
    fn families_take_turns_and_what_disappointed_comes_last() {
        let memory = Memory::default();
        let found =
            ["[2001:db8::1]:1", "[2001:db8::2]:1", "[2001:db8::3]:1", "192.0.2.1:1", "192.0.2.2:1"].map(at);
        let shown = |memory: &Memory| {
            let order = in_order(found.to_vec(), memory);
            order.into_iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(shown(&memory), "2001:db8::1 192.0.2.1 2001:db8::2 192.0.2.2 2001:db8::3");
        memory.disappointed(found[0]);
        memory.disappointed(found[3]);
        assert_eq!(shown(&memory), "2001:db8::2 192.0.2.2 2001:db8::3 2001:db8::1 192.0.2.1");
        memory.disappointed(found[0]);
        memory.pleased(found[3]);
        assert_eq!(shown(&memory), "192.0.2.1 2001:db8::2 192.0.2.2 2001:db8::3 2001:db8::1");
    }

    #[test]
    fn many_addresses_are_bounded_and_none_is_tried_twice() {
        let many: Vec<SocketAddr> =
            (0..=255).flat_map(|n| [at(&format!("192.0.2.{n}:1")), at(&format!("192.0.2.{n}:1"))]).collect();
        let memory = Memory::default();
        many.iter().for_each(|address| memory.disappointed(*address));
        let order = in_order(many, &memory);
        assert_eq!(order.len(), MOST);
        assert_eq!(order.iter().collect::<std::collections::BTreeSet<_>>().len(), MOST);
        assert_eq!(memory.0.lock().unwrap().len(), MOST);
    }
}
