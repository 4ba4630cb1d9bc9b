//! One file over HTTPS: resumed, with progress, checked.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};
use ureq::{
    Agent, Body,
    http::{Response, StatusCode, header},
    tls::{RootCerts, TlsConfig},
};

/// What a file must be.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    pub bytes: u64,
    /// Lower-case hexadecimal.
    pub sha256: &'a str,
}

const BUFFER_BYTES: usize = 1 << 17;

/// Downloads `url` to `to`. What an interrupted run left in `to` + `.part` is not fetched again; the
/// file appears under its name only when it is whole and its hash is right.
///
/// # Errors
/// No connection, a server that says no, or a file that is not the expected one.
pub fn download(url: &str, to: &Path, expected: Expected) -> Result<()> {
    let part = with_suffix(to, ".part");
    let mut file = OpenOptions::new().create(true).append(true).open(&part)?;
    let mut have = file.metadata()?.len();
    if have > expected.bytes {
        file.set_len(0)?;
        have = 0;
    }
    if have < expected.bytes {
        receive(url, &mut file, have, expected.bytes)
            .with_context(|| format!("downloading {url}; start again to resume"))?;
    }
    file.sync_all()?;
    if let Err(error) = check(&part, expected) {
        std::fs::remove_file(&part)?;
        return Err(error).with_context(|| format!("{url} is not what was expected; start again"));
    }
    Ok(std::fs::rename(&part, to)?)
}

fn receive(url: &str, file: &mut File, mut have: u64, bytes: u64) -> Result<()> {
    let mut response = request(url, have)?;
    if have > 0 && !resumes(&response, have) {
        file.set_len(0)?;
        have = 0;
        if response.status() != StatusCode::OK {
            response = request(url, 0)?;
        }
    }
    ensure!(response.status().is_success(), "the server answered {}", response.status());
    let bar = progress_bar(bytes, have);
    let mut body = response.body_mut().as_reader().take(bytes - have);
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let len = body.read(&mut buffer)?;
        if len == 0 {
            break;
        }
        file.write_all(&buffer[..len])?;
        bar.inc(len as u64);
    }
    bar.finish_and_clear();
    Ok(())
}

fn request(url: &str, from: u64) -> Result<Response<Body>> {
    let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
    let agent: Agent = Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        .timeout_connect(Some(Duration::from_secs(30)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .build()
        .into();
    let request = agent.get(url);
    let request = match from {
        0 => request,
        _ => request.header(header::RANGE, format!("bytes={from}-")),
    };
    Ok(request.call()?)
}

/// Whether the server goes on where we stopped.
fn resumes(response: &Response<Body>, from: u64) -> bool {
    let range = response.headers().get(header::CONTENT_RANGE).and_then(|v| v.to_str().ok());
    response.status() == StatusCode::PARTIAL_CONTENT
        && range.is_some_and(|range| range.starts_with(&format!("bytes {from}-")))
}

/// Shown on stderr when that is a terminal.
pub fn progress_bar(bytes: u64, done: u64) -> ProgressBar {
    let bar = ProgressBar::new(bytes).with_position(done);
    let template = "{bar:40} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// # Errors
/// The file is shorter, longer, or not the one expected.
pub fn check(path: &Path, expected: Expected) -> Result<()> {
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len();
    ensure!(bytes == expected.bytes, "got {bytes} bytes of {}", expected.bytes);
    let sha256 = copy_hashed(&mut file, &mut std::io::sink())?;
    ensure!(sha256 == expected.sha256, "the SHA-256 is {sha256}, not {}", expected.sha256);
    Ok(())
}

/// Copies, and returns the SHA-256 of what went through.
pub fn copy_hashed(from: &mut impl Read, to: &mut impl Write) -> Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let len = from.read(&mut buffer)?;
        if len == 0 {
            return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        hash.update(&buffer[..len]);
        to.write_all(&buffer[..len])?;
    }
}

/// `path` with `suffix` after its last character.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        net::TcpListener,
        thread,
    };

    use super::*;

    const CONTENT: &[u8] = b"a model's weights";
    const WRONG: &str = "0000";

    fn expected(sha256: &str) -> Expected<'_> {
        Expected { bytes: CONTENT.len() as u64, sha256 }
    }

    fn true_hash() -> String {
        copy_hashed(&mut &CONTENT[..], &mut std::io::sink()).unwrap()
    }

    /// Serves CONTENT once, from the asked byte on if `ranges`; returns the URL and the request.
    fn serve_once(ranges: bool) -> (String, thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/model", listener.local_addr().unwrap());
        let serve = move || {
            let (mut stream, _) = listener.accept().unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let head: Vec<String> = lines
                .map(|line| line.unwrap().to_lowercase())
                .take_while(|l| !l.is_empty())
                .collect();
            let from = head.iter().find_map(|l| l.strip_prefix("range: bytes=")?.strip_suffix('-'));
            let from: usize = from.filter(|_| ranges).map_or(0, |from| from.parse().unwrap());
            let status = match from {
                0 => "200 OK".to_owned(),
                _ => format!("206 Partial Content\r\nContent-Range: bytes {from}-16/17"),
            };
            let body = &CONTENT[from..];
            write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len()).unwrap();
            stream.write_all(body).unwrap();
            head.join("\n")
        };
        (url, thread::spawn(serve))
    }

    fn download_after(left: &[u8], ranges: bool, sha256: &str) -> (Result<Vec<u8>>, String) {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("model");
        std::fs::write(with_suffix(&to, ".part"), left).unwrap();
        let (url, server) = serve_once(ranges);
        let result = download(&url, &to, expected(sha256)).map(|()| std::fs::read(&to).unwrap());
        assert!(!with_suffix(&to, ".part").exists());
        (result, server.join().unwrap())
    }

    #[test]
    fn an_interrupted_download_goes_on_where_it_stopped() {
        let (got, request) = download_after(b"a model", true, &true_hash());
        assert_eq!(got.unwrap(), CONTENT);
        assert!(request.contains("range: bytes=7-"), "{request}");
    }

    #[test]
    fn a_server_without_ranges_sends_it_all_again() {
        let (got, _) = download_after(b"a model", false, &true_hash());
        assert_eq!(got.unwrap(), CONTENT);
    }

    #[test]
    fn a_wrong_file_is_refused_and_not_kept() {
        let (got, _) = download_after(b"", true, WRONG);
        assert!(format!("{:#}", got.unwrap_err()).contains("SHA-256"));
        let (got, _) = download_after(b"another", true, &true_hash());
        assert!(got.is_err());
    }

    #[test]
    fn no_connection_is_an_error_that_names_the_url() {
        let folder = tempfile::tempdir().unwrap();
        let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let url = format!("http://{unused}/model");
        let error = download(&url, &folder.path().join("model"), expected(WRONG)).unwrap_err();
        assert!(format!("{error:#}").contains(&url));
    }
}
