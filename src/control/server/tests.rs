//! The socket as clients meet it, over real sockets in a temporary folder.

use super::*;
use crate::control::{Client, ClientError};
use serde_json::json;
use tokio::task::{JoinHandle, spawn_blocking};

/// An agent that echoes each request, and for `watch` counts to three.
fn agent(run: &Path) -> JoinHandle<()> {
    let listener = bind(run).unwrap();
    let (calls, mut queue) = mpsc::channel::<Call>(4);
    tokio::spawn(async move {
        let answering = async {
            while let Some(call) = queue.recv().await {
                match call.request.method {
                    Method::Watch => {
                        for n in 0..3 {
                            call.reply.send(Ok(json!(n))).await;
                        }
                    }
                    Method::History => drop(call),
                    Method::Cancel => {
                        call.reply.send(Err(Failure::new(Code::Busy, "armed already"))).await;
                    }
                    _ => {
                        let echo = json!({"params": call.request.params, "uid": call.peer.uid});
                        call.reply.send(Ok(echo)).await;
                    }
                }
            }
        };
        tokio::join!(serve(&listener, calls), answering);
    })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    spawn_blocking(work).await.unwrap()
}

#[tokio::test]
async fn requests_are_answered_in_order_on_one_connection() {
    let dir = tempfile::tempdir().unwrap();
    let agent = agent(dir.path());
    let path = dir.path().join(SOCKET);
    blocking(move || {
        let mut client = Client::connect(&path).unwrap();
        let answer = client.call(Method::Install, json!({"fwPackageUri": "https://h/x"})).unwrap();
        assert_eq!(answer["params"]["fwPackageUri"], "https://h/x");
        assert_eq!(answer["uid"], getuid().as_raw());
        let refused = client.call(Method::Cancel, Value::Null).unwrap_err();
        assert!(matches!(refused, ClientError::Refused(Failure { code: Code::Busy, .. })));
        let silent = client.call(Method::History, Value::Null).unwrap_err();
        assert!(matches!(silent, ClientError::Refused(Failure { code: Code::NotReady, .. })));
        assert_eq!(client.call(Method::Status, Value::Null).unwrap()["params"], Value::Null);
    })
    .await;
    agent.abort();
}

#[tokio::test]
async fn a_watch_streams_until_the_agent_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let agent = agent(dir.path());
    let path = dir.path().join(SOCKET);
    blocking(move || {
        let mut client = Client::connect(&path).unwrap().watch().unwrap();
        for n in 0..3 {
            assert_eq!(client.receive().unwrap(), json!(n));
        }
        assert!(matches!(client.receive(), Err(ClientError::Closed)));
    })
    .await;
    agent.abort();
}

#[tokio::test]
async fn a_watcher_that_leaves_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let listener = bind(dir.path()).unwrap();
    let (calls, mut queue) = mpsc::channel(1);
    let server = tokio::spawn(async move { serve(&listener, calls).await });
    let path = dir.path().join(SOCKET);
    let client = blocking(move || Client::connect(&path).unwrap().watch().unwrap()).await;
    let call = queue.recv().await.unwrap();
    drop(client);
    call.reply.closed().await;
    assert!(!call.reply.offer(Ok(Value::Null)));
    drop(queue);
    server.await.unwrap();
}

#[tokio::test]
async fn more_watchers_than_places_leave_room_for_whoever_comes() {
    let dir = tempfile::tempdir().unwrap();
    let listener = bind(dir.path()).unwrap();
    let (calls, mut queue) = mpsc::channel(16);
    let server = tokio::spawn(async move { serve(&listener, calls).await });
    let path = dir.path().join(SOCKET);
    let (mut clients, mut watching) = (Vec::new(), Vec::new());
    for _ in 0..100 {
        let path = path.clone();
        clients.push(blocking(move || Client::connect(&path).unwrap().watch().unwrap()).await);
        watching.push(queue.recv().await.unwrap().reply);
    }
    for reply in &watching[..84] {
        reply.closed().await;
    }
    assert!(watching[84..].iter().all(|reply| !reply.is_closed()), "the newest are served");
    drop(queue);
    server.await.unwrap();
}

/// Sends raw bytes and gives back all that is answered until the server closes.
async fn raw(run: &Path, bytes: Vec<u8>) -> String {
    let mut stream = UnixStream::connect(run.join(SOCKET)).await.unwrap();
    let sent = stream.write_all(&bytes).await;
    let mut text = String::new();
    if sent.is_ok() {
        stream.shutdown().await.unwrap();
    }
    match stream.read_to_string(&mut text).await {
        Ok(_) => text,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn malformed_requests_are_told_so_and_the_next_one_is_heard() {
    let dir = tempfile::tempdir().unwrap();
    let agent = agent(dir.path());
    for bad in ["nonsense", "{}", "{\"method\":\"format\"}", "{\"method\":\"status\",\"extra\":1}", "\u{0}"] {
        let text = raw(dir.path(), format!("{bad}\n{{\"method\":\"status\"}}\n").into_bytes()).await;
        let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines[0]["error"]["code"], "MalformedRequest", "{bad}");
        assert!(lines[1]["result"].is_object(), "{bad}");
    }
    agent.abort();
}

#[tokio::test]
async fn a_request_without_end_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let agent = agent(dir.path());
    let mut stream = UnixStream::connect(dir.path().join(SOCKET)).await.unwrap();
    let chunk = vec![b'x'; 64 * 1024];
    // The server closes: sooner or later a write fails.
    while stream.write_all(&chunk).await.is_ok() {}
    let mut text = String::new();
    let read = stream.read_to_string(&mut text).await;
    assert!(read.is_err() || text.is_empty());
    agent.abort();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_cut_off() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (calls, _queue) = mpsc::channel(1);
    let (peer, seat) = (Peer { uid: 1 }, Seats::default().take(1, false));
    let (reader, mut writer) = theirs.into_split();
    let error = converse(BufReader::new(reader), &mut writer, peer, &seat, &calls).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    drop(ours);
}

#[tokio::test]
async fn only_root_and_the_agents_own_user_may_change() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (_, mut writer) = theirs.into_split();
    let stranger = Peer { uid: getuid().as_raw() + 4242 };
    let line = |method: &str| format!("{{\"method\":\"{method}\"}}").into_bytes();
    for method in ["install", "cancel", "approve", "defer", "rollback"] {
        assert!(parse(&line(method), stranger, &mut writer).await.unwrap().is_none(), "{method}");
    }
    for method in ["status", "history", "slots", "doctor", "watch"] {
        assert!(parse(&line(method), stranger, &mut writer).await.unwrap().is_some(), "{method}");
    }
    assert!(parse(&line("install"), Peer { uid: 0 }, &mut writer).await.unwrap().is_some());
    drop(writer);
    let mut lines = BufReader::new(ours).lines();
    let mut refusals = 0;
    while let Some(line) = lines.next_line().await.unwrap() {
        assert!(line.contains("NotPermitted"), "{line}");
        refusals += 1;
    }
    assert_eq!(refusals, 5);
}

#[tokio::test]
async fn the_socket_is_closed_to_others_and_a_dead_one_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run/fwupdate");
    let path = run.join(SOCKET);
    let first = bind(&run).unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    let group = Group::from_name(GROUP).unwrap();
    assert_eq!(mode, if group.is_some() { 0o660 } else { 0o600 });
    assert!(matches!(bind(&run), Err(ControlError::Taken { .. })));
    drop(first);
    drop(bind(&run).unwrap());
    assert_eq!(fs::read_dir(&run).unwrap().count(), 1, "nothing is left beside the socket");
    fs::remove_file(&path).unwrap();
    fs::write(&path, "precious").unwrap();
    assert!(matches!(bind(&run), Err(ControlError::Obstacle { .. })));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test]
async fn an_absent_agent_is_unreachable() {
    let error = Client::connect(Path::new("/no/such/socket")).unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }));
    assert!(error.to_string().contains("fwupdate.service"));
}
