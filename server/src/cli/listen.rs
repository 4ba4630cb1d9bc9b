//! Connections: bounded headers, and no patience with clients that stall.

use std::future::Future;
use std::io;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tokio_io_timeout::TimeoutStream;

/// After a failed accept, when the system is out of file descriptors, say.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// hyper's own bound.
const MAX_HEADERS: usize = 100;

/// What a connection may take.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// From the end of one answer, or the start, to the end of the next request's headers.
    pub header_timeout: Duration,
    pub max_header_bytes: usize,
    /// How long a client may take nothing of what is sent to it.
    pub write_timeout: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(60),
            max_header_bytes: 64 << 10,
            write_timeout: Duration::from_secs(60),
        }
    }
}

/// Serves until `shutdown`; then takes no more connections, and returns once those there are have
/// had their answers.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: ConnectionLimits,
    shutdown: impl Future<Output = ()>,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        // Twice as many, so that who sends a few too many hears why.
        .max_buf_size(limits.max_header_bytes.saturating_mul(2))
        .max_headers(MAX_HEADERS);
    let graceful = GracefulShutdown::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
        };
        let Some(stream) = taken(accepted).await else { continue };
        let service = TowerToHyperService::new(router.clone());
        let connection = http.serve_connection(TokioIo::new(timed(stream, limits)), service);
        // A client that goes away is no error of ours.
        tokio::spawn(graceful.watch(connection));
    }
    drop(listener);
    graceful.shutdown().await;
}

async fn taken<A>(accepted: io::Result<(TcpStream, A)>) -> Option<TcpStream> {
    match accepted {
        Ok((stream, _)) => {
            // Tokens are small and each is wanted now. Without it they still arrive.
            let _ = stream.set_nodelay(true);
            Some(stream)
        }
        Err(error) => {
            tracing::warn!("cannot take a connection: {error}");
            sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

fn timed(
    stream: TcpStream,
    limits: ConnectionLimits,
) -> std::pin::Pin<Box<TimeoutStream<TcpStream>>> {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(limits.write_timeout));
    Box::pin(stream)
}
