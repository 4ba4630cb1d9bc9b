//! Serving until a signal, then finishing what runs within a deadline.

use std::future::IntoFuture;
use std::io;
use std::time::Duration;

use axum::Router;
use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use crate::engine::EngineHandle;

/// How long aborted answers may take to reach their clients.
const ABORT_GRACE: Duration = Duration::from_secs(5);

/// How serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Every request had its answer, aborted ones included.
    Drained,
    /// A second signal, or a client that did not take its answer.
    Cut,
}

/// SIGINT and SIGTERM, as they come.
///
/// # Errors
/// The handlers cannot be set.
pub fn signals() -> io::Result<mpsc::UnboundedReceiver<()>> {
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

/// Serves until the first of `signals`, then takes no more connections and gives running requests
/// `timeout`; what runs on after that is aborted. A second signal ends it at once.
///
/// # Errors
/// The listener fails.
pub async fn serve_until(
    listener: TcpListener,
    router: Router,
    engine: &EngineHandle,
    signals: &mut mpsc::UnboundedReceiver<()>,
    timeout: Duration,
) -> io::Result<Ended> {
    let (drain, mut draining) = watch::channel(false);
    // Tokens are small and each is wanted now.
    let listener = listener.tap_io(|stream| _ = stream.set_nodelay(true));
    let server = axum::serve(listener, router).with_graceful_shutdown(async move {
        // A closed channel ends serving as well.
        let _ = draining.wait_for(|drain| *drain).await;
    });
    let mut server = std::pin::pin!(server.into_future());
    tokio::select! {
        result = &mut server => return result.map(|()| Ended::Drained),
        _ = signals.recv() => drain.send_replace(true),
    };
    tracing::info!("shutting down: running requests have {timeout:?} to finish");
    tokio::select! {
        result = &mut server => return result.map(|()| Ended::Drained),
        () = sleep(timeout) => tracing::warn!("aborting what still runs"),
        _ = signals.recv() => return Ok(Ended::Cut),
    }
    engine.shutdown();
    tokio::select! {
        result = &mut server => result.map(|()| Ended::Drained),
        () = sleep(ABORT_GRACE) => Ok(Ended::Cut),
        _ = signals.recv() => Ok(Ended::Cut),
    }
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

    /// A served fake engine, and the sending end of its signals.
    async fn server(
        script: Script,
        timeout: Duration,
    ) -> (SocketAddr, mpsc::UnboundedSender<()>, JoinHandle<Ended>) {
        let engine = FakeEngine::new(vec![script]).handle;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (signal, mut signals) = mpsc::unbounded_channel();
        let serving = tokio::spawn(async move {
            let router = router(app(engine.clone()));
            serve_until(listener, router, &engine, &mut signals, timeout).await.unwrap()
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

    /// Time for a request to reach the engine.
    async fn a_moment() {
        sleep(Duration::from_millis(50)).await;
    }

    #[tokio::test]
    async fn an_idle_server_ends_at_the_first_signal() {
        let (address, signal, serving) = server(says("hello"), LONG).await;
        assert!(request(address).await.unwrap().contains("[DONE]"));
        signal.send(()).unwrap();
        assert_eq!(serving.await.unwrap(), Ended::Drained);
    }

    #[tokio::test]
    async fn a_request_that_outlives_the_timeout_ends_with_abort() {
        let script = Script::Hang(ids("hello"));
        let (address, signal, serving) = server(script, Duration::from_millis(50)).await;
        let answer = request(address);
        a_moment().await;
        signal.send(()).unwrap();
        assert_eq!(serving.await.unwrap(), Ended::Drained);
        let answer = answer.await.unwrap();
        assert!(answer.contains(r#""finish_reason":"abort""#) && answer.contains("[DONE]"));
    }

    #[tokio::test]
    async fn a_draining_server_takes_no_new_connections() {
        let (address, signal, serving) = server(Script::Hang(ids("hello")), LONG).await;
        let running = request(address);
        a_moment().await;
        signal.send(()).unwrap();
        a_moment().await;
        assert!(!serving.is_finished());
        assert!(TcpStream::connect(address).is_err());
        signal.send(()).unwrap();
        assert_eq!(serving.await.unwrap(), Ended::Cut);
        running.abort();
    }
}
