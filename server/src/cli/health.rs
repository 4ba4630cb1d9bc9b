//! `keepwell health`: asks a server how it is, for containers that have no curl.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, value_parser};

use super::args::duration;

/// An answer's head is shorter.
const MAX_ANSWER: u64 = 4096;

#[derive(Clone, Debug, Args)]
pub struct HealthArgs {
    /// Where the server listens
    #[arg(long, env = "KEEPWELL_HOST", default_value = "127.0.0.1")]
    pub host: String,

    #[arg(long, env = "KEEPWELL_PORT", default_value_t = 8000, value_parser = value_parser!(u16).range(1..))]
    pub port: u16,

    /// What to ask
    #[arg(long, env = "KEEPWELL_PATH", default_value = "/health")]
    pub path: String,

    /// How long the answer may take
    #[arg(long, env = "KEEPWELL_TIMEOUT", default_value = "5s", value_parser = duration)]
    pub timeout: Duration,
}

/// # Errors
/// The server does not answer in time, or not with 200.
pub fn run(args: &HealthArgs) -> Result<()> {
    ensure!(args.path.starts_with('/'), "--path {} does not begin with /", args.path);
    ensure!(args.path.chars().all(|c| c.is_ascii_graphic()), "--path is no path");
    let HealthArgs { host, port, path, timeout } = args;
    // A server that listens on every interface listens on this one.
    let host = match host.as_str() {
        "0.0.0.0" => "127.0.0.1",
        "::" => "::1",
        other => other,
    };
    let status = status(host, *port, path, *timeout)
        .with_context(|| format!("no answer from {host}:{port}"))?;
    if status != 200 {
        bail!("{host}:{port} answered {status} to {path}");
    }
    println!("ok");
    Ok(())
}

fn status(host: &str, port: u16, path: &str, timeout: Duration) -> Result<u16> {
    let address = (host, port).to_socket_addrs()?.next().context("the host has no address")?;
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    // In one piece: a server that has read only the first of several resets the connection.
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    status.and_then(|status| status.parse().ok()).context("the answer is not HTTP")
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// No answer takes that long on a busy machine.
    const LONG: Duration = Duration::from_secs(60);

    /// A server that answers one request with this; nothing leaves it waiting.
    fn asked(answer: &'static str, timeout: Duration) -> Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            if answer.is_empty() {
                // Until the client has given up.
                let _ = stream.read(&mut request);
            }
        });
        run(&HealthArgs { host: "0.0.0.0".into(), port, path: "/health".into(), timeout })
    }

    #[test]
    fn only_200_is_healthy() {
        asked("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", LONG).unwrap();
        let error = asked("HTTP/1.1 503 Service Unavailable\r\n\r\n", LONG).unwrap_err();
        assert!(error.to_string().contains("503"), "{error}");
        assert!(asked("SSH-2.0-x\r\n", LONG).is_err());
    }

    #[test]
    fn a_server_that_says_nothing_or_is_not_there_is_not_healthy() {
        let timeout = Duration::from_millis(300);
        let error = asked("", timeout).unwrap_err();
        assert!(format!("{error:#}").contains("no answer"), "{error:#}");
        let args = HealthArgs { host: "127.0.0.1".into(), port: 1, path: "/".into(), timeout };
        assert!(run(&args).is_err());
        assert!(run(&HealthArgs { path: "/a b".into(), ..args }).is_err());
    }
}
