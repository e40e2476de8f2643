//! A port that leads to another address, which may change: what a DNS name is to a hub that fails over.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::Instant;

#[derive(Debug)]
pub struct Relay {
    port: u16,
    target: Arc<Mutex<SocketAddr>>,
    accepted: Arc<Mutex<Vec<Instant>>>,
    accepting: JoinHandle<()>,
}

impl Relay {
    pub async fn to(target: SocketAddr) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let target = Arc::new(Mutex::new(target));
        let (now, accepted) = (target.clone(), Arc::new(Mutex::new(Vec::new())));
        let times = accepted.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((mut device, _)) = listener.accept().await {
                times.lock().unwrap().push(Instant::now());
                let target = *now.lock().unwrap();
                tokio::spawn(async move {
                    // Nobody there: the device sees its connection closed.
                    if let Ok(mut hub) = TcpStream::connect(target).await {
                        drop(copy_bidirectional(&mut device, &mut hub).await);
                    }
                });
            }
        });
        Relay { port, target, accepted, accepting }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// When connections came, from `since` on.
    pub fn accepted(&self, since: Instant) -> Vec<Instant> {
        self.accepted.lock().unwrap().iter().copied().filter(|at| *at >= since).collect()
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
