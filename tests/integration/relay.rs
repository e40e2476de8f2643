//! A port that leads to another address, which may change: what a DNS name is to a hub that fails over.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

#[derive(Debug)]
pub struct Relay {
    port: u16,
    target: Arc<Mutex<SocketAddr>>,
    accepted: Arc<Mutex<Vec<Instant>>>,
    mutes: watch::Sender<()>,
    accepting: JoinHandle<()>,
}

impl Relay {
    pub async fn to(target: SocketAddr) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let target = Arc::new(Mutex::new(target));
        let (now, accepted) = (target.clone(), Arc::new(Mutex::new(Vec::new())));
        let times = accepted.clone();
        let mutes = watch::Sender::new(());
        let muted = mutes.subscribe();
        let accepting = tokio::spawn(async move {
            while let Ok((mut device, _)) = listener.accept().await {
                times.lock().unwrap().push(Instant::now());
                let target = *now.lock().unwrap();
                let mut muted = muted.clone();
                muted.mark_unchanged();
                tokio::spawn(async move {
                    // Nobody there: the device sees its connection closed.
                    let Ok(mut hub) = TcpStream::connect(target).await else { return };
                    tokio::select! {
                        copied = copy_bidirectional(&mut device, &mut hub) => drop(copied),
                        // Neither side hears of it, as long as there is a relay.
                        Ok(()) = muted.changed() => while muted.changed().await.is_ok() {},
                    }
                });
            }
        });
        Relay { port, target, accepted, mutes, accepting }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// When connections came, from `since` on.
    pub fn accepted(&self, since: Instant) -> Vec<Instant> {
        self.accepted.lock().unwrap().iter().copied().filter(|at| *at >= since).collect()
    }

    /// Swallows from now on all that the connections that stand carry; new ones are not concerned.
    pub fn mute(&self) {
        self.mutes.send_replace(());
    }

    /// New connections go there from now on.
    pub fn turn(&self, target: SocketAddr) {
        *self.target.lock().unwrap() = target;
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}
