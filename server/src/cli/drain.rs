//! Serving until a signal, then finishing what runs within a deadline.

use std::io;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::listen::{self, ConnectionLimits};
use crate::engine::EngineHandle;
use crate::http::Draining;

/// How long aborted answers may take to reach their clients.
const ABORT_GRACE: Duration = Duration::from_secs(5);

/// How serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Every request had its answer, aborted ones included, or its time to take it.
    Drained,
    /// A second signal, or an engine that died.
    Cut,
}

/// SIGINT and SIGTERM, as they come.
pub type Signals = mpsc::UnboundedReceiver<()>;

/// Takes the signals from now on: the process no longer ends by itself.
///
/// # Errors
/// The handlers cannot be set.
pub fn signals() -> io::Result<Signals> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let received = tokio::select! {
                received = interrupt.recv() => received,
                received = terminate.recv() => received,
            };
            if received.is_none() || sender.send(()).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// Waits for the next of `signals`. A closed channel is none: the runtime whose task hears them ends.
pub async fn next_signal(signals: &mut Signals) {
    if signals.recv().await.is_none() {
        std::future::pending().await
    }
}

/// What is told that the server ends, and how long each may take.
pub struct Ending {
    pub engine: EngineHandle,
    pub draining: Draining,
    /// From "not ready" to the refusal of new connections: load balancers need it to notice.
    pub grace: Duration,
    /// For running requests to finish.
    pub timeout: Duration,
}

/// Serves until the first of `signals`: then is not ready, takes no more connections after the
/// grace, gives running requests their time, and aborts what runs on after that; a client that does
/// not take its answer even then is cut off. A second signal ends it at once, and so does the end of
/// the engine.
pub async fn serve_until(
    listener: TcpListener,
    router: Router,
    limits: ConnectionLimits,
    ending: &Ending,
    signals: &mut Signals,
) -> Ended {
    let (close, mut closing) = watch::channel(false);
    let server = listen::serve(listener, router, limits, async move {
        // A closed channel ends serving as well.
        let _ = closing.wait_for(|close| *close).await;
    });
    let mut server = std::pin::pin!(server);
    let Ending { engine, draining, grace, timeout } = ending;
    let engine_died = tokio::select! {
        () = &mut server => return Ended::Drained,
        () = engine.closed() => true,
        () = next_signal(signals) => false,
    };
    draining.begin();
    if engine_died {
        return end_with_engine(server, &close).await;
    }
    tracing::info!("shutting down: running requests have {timeout:?} to finish");
    // An engine that dies may be what ended the last request.
    let drained = || if engine.is_closed() { Ended::Cut } else { Ended::Drained };
    tokio::select! {
        () = &mut server => return drained(),
        () = engine.closed() => return end_with_engine(server, &close).await,
        () = sleep(*grace) => close.send_replace(true),
        () = next_signal(signals) => return Ended::Cut,
    };
    tokio::select! {
        () = &mut server => return drained(),
        () = engine.closed() => return end_with_engine(server, &close).await,
        () = sleep(*timeout) => tracing::warn!("aborting what still runs"),
        () = next_signal(signals) => return Ended::Cut,
    }
    engine.shutdown();
    tokio::select! {
        () = &mut server => Ended::Drained,
        () = sleep(ABORT_GRACE) => {
            tracing::warn!("cutting off clients that do not take their answers");
            Ended::Drained
        }
        () = next_signal(signals) => Ended::Cut,
    }
}

/// The engine has died: those that it failed hear of it before the server ends, too.
async fn end_with_engine(server: impl Future<Output = ()>, close: &watch::Sender<bool>) -> Ended {
    tracing::error!("the engine has ended: so does the server");
    close.send_replace(true);
    let _ = tokio::time::timeout(ABORT_GRACE, server).await;
    Ended::Cut
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream};

    use tokio::task::JoinHandle;

    use super::*;
    use crate::engine::fake::{FakeEngine, Script};
    use crate::http::fake::{app, ids, says};
    use crate::http::router;

    const LONG: Duration = Duration::from_secs(60);

    /// A served fake engine.
    struct Served {
        address: SocketAddr,
        signal: mpsc::UnboundedSender<()>,
        serving: JoinHandle<Ended>,
        engine: FakeEngine,
    }

    async fn server(script: Script, timeout: Duration) -> Served {
        graceful_server(script, Duration::ZERO, timeout).await
    }

    async fn graceful_server(script: Script, grace: Duration, timeout: Duration) -> Served {
        let engine = FakeEngine::new(vec![script]);
        let (address, signal, serving) = serve(engine.handle.clone(), grace, timeout).await;
        Served { address, signal, serving, engine }
    }

    async fn serve(
        engine: EngineHandle,
        grace: Duration,
        timeout: Duration,
    ) -> (SocketAddr, mpsc::UnboundedSender<()>, JoinHandle<Ended>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (signal, mut signals) = mpsc::unbounded_channel();
        let serving = tokio::spawn(async move {
            let app = app(engine.clone());
            let draining = app.draining.clone();
            let ending = Ending { engine, draining, grace, timeout };
            let limits = ConnectionLimits {
                header_timeout: Duration::from_secs(2),
                max_header_bytes: 8 << 10,
                ..ConnectionLimits::default()
            };
            serve_until(listener, router(app), limits, &ending, &mut signals).await
        });
        (address, signal, serving)
    }

    /// The whole answer to a streamed completion.
    fn request(address: SocketAddr) -> JoinHandle<String> {
        tokio::task::spawn_blocking(move || {
            let body = r#"{"prompt": "a", "stream": true}"#;
            let head = "POST /v1/completions HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\
                        content-type: application/json\r\ncontent-length: ";
            let mut stream = TcpStream::connect(address).unwrap();
            write!(stream, "{head}{}\r\n\r\n{body}", body.len()).unwrap();
            let mut answer = String::new();
            // A server that is cut off may reset the connection.
            let _ = stream.read_to_string(&mut answer);
            answer
        })
    }

    /// The whole answer to these bytes.
    async fn raw(address: SocketAddr, bytes: Vec<u8>) -> String {
        let ask = move || {
            let mut stream = TcpStream::connect(address).unwrap();
            let _ = stream.write_all(&bytes);
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer);
            answer
        };
        tokio::task::spawn_blocking(ask).await.unwrap()
    }

    const READY: &[u8] = b"GET /ready HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n";

    #[tokio::test]
    async fn in_its_grace_a_server_is_not_ready_and_still_answers() {
        let Served { address, signal, serving, .. } =
            graceful_server(says("hello"), LONG, LONG).await;
        assert!(raw(address, READY.to_vec()).await.starts_with("HTTP/1.1 200"));
        signal.send(()).unwrap();
        while !raw(address, READY.to_vec()).await.starts_with("HTTP/1.1 503") {}
        assert!(request(address).await.unwrap().contains("[DONE]"));
        signal.send(()).unwrap();
        assert_eq!(serving.await.unwrap(), Ended::Cut);
    }

    #[tokio::test]
    async fn a_server_whose_engine_dies_does_not_outlive_it() {
        let (_, _signal, serving) = serve(FakeEngine::dead(), Duration::ZERO, LONG).await;
        assert_eq!(serving.await.unwrap(), Ended::Cut);
    }

    #[tokio::test]
    async fn headers_that_never_end_or_are_too_long_end_the_connection() {
        let Served { address, signal, serving, .. } = server(says("hello"), LONG).await;
        let slow = raw(address, b"GET /ready HTTP/1.1\r\nhost:".to_vec());
        tokio::time::timeout(LONG, slow).await.unwrap();
        let long = format!("GET /ready HTTP/1.1\r\nhost: {}\r\n\r\n", "x".repeat(17 << 10));
        let answer = raw(address, long.into_bytes()).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
        signal.send(()).unwrap();
        assert_eq!(serving.await.unwrap(), Ended::Drained);
    }

    #[tokio::test]
    async fn an_idle_server_ends_at_the_first_signal() {
        let Served { address, signal, serving, .. } = server(says("hello"), LONG).await;
        assert!(request(address).await.unwrap().contains("[DONE]"));
        signal.send(()).unwrap();
        assert_eq!(serving.await.unwrap(), Ended::Drained);
    }

    #[tokio::test]
    async fn a_request_that_outlives_the_timeout_ends_with_abort() {
        let script = Script::Hang(ids("hello"));
        let Served { address, signal, serving, engine } =
            server(script, Duration::from_millis(50)).await;
        let answer = request(address);
        engine.asked().await;
        signal.send(()).unwrap();
        assert_eq!(serving.await.unwrap(), Ended::Drained);
        let answer = answer.await.unwrap();
        assert!(answer.contains(r#""finish_reason":"abort""#) && answer.contains("[DONE]"));
    }

    #[tokio::test]
    async fn an_engine_that_dies_while_the_server_drains_is_not_a_good_end() {
        let script = Script::Hang(ids("hello"));
        let Served { address, signal, serving, engine } = server(script, LONG).await;
        let running = request(address);
        engine.asked().await;
        signal.send(()).unwrap();
        while TcpStream::connect(address).is_ok() {
            sleep(Duration::from_millis(1)).await;
        }
        engine.handle.shutdown();
        assert_eq!(serving.await.unwrap(), Ended::Cut);
        running.abort();
    }

    #[tokio::test]
    async fn a_runtime_that_ends_is_no_signal() {
        let (signal, mut signals) = mpsc::unbounded_channel();
        signal.send(()).unwrap();
        drop(signal);
        next_signal(&mut signals).await;
        let second = tokio::time::timeout(Duration::from_millis(10), next_signal(&mut signals));
        assert!(second.await.is_err());
    }

    #[tokio::test]
    async fn a_draining_server_takes_no_new_connections() {
        let Served { address, signal, serving, engine } =
            server(Script::Hang(ids("hello")), LONG).await;
        let running = request(address);
        engine.asked().await;
        signal.send(()).unwrap();
        while TcpStream::connect(address).is_ok() {
            sleep(Duration::from_millis(1)).await;
        }
        assert!(!serving.is_finished());
        signal.send(()).unwrap();
        assert_eq!(serving.await.unwrap(), Ended::Cut);
        running.abort();
    }
}
