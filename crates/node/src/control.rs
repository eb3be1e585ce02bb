//! The socket by which a running process answers queries about a replica it has locked: one JSON
//! [`Request`] a line in, one JSON [`Response`] a line out.
//!
//! The socket lies in the replica's state directory, which is closed to other users; so whoever can
//! connect could read the index as well. Questions are answered one after the other: they are pages of bounded
//! work (see [`crate::query`]).

use crate::query::{Request, Response};
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Longest request, in bytes: a path (4 KiB, in hex) with room.
const REQUEST_LEN_MAX: u64 = 16 * 1024;

/// Longest response that [`ask`] reads, in bytes: a page of rows with long paths.
const RESPONSE_LEN_MAX: u64 = 64 << 20;

/// A client that says nothing for so long is left, so that it does not keep the others waiting.
const CLIENT_IDLE_MAX: Duration = Duration::from_secs(2);

/// How long [`ask`] waits for an answer. The server may be busy with another's page.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(30);

/// Answers on a socket until dropped.
pub struct ControlServer {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ControlServer {
    /// Listens at `path` (in the directory that the caller has locked; what a killed process left there
    /// is removed) and answers with `answer`.
    pub fn start(
        path: &Path,
        answer: impl Fn(&Request) -> Response + Send + 'static,
    ) -> io::Result<ControlServer> {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = short(path, UnixListener::bind)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("control".into()).spawn(move || {
            for client in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                // What goes wrong with one client is that client's business.
                let _ = client.and_then(|client| serve(client, &answer));
            }
        })?;
        Ok(ControlServer { path: path.to_owned(), stop, thread: Some(thread) })
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the thread out of `accept`. If it cannot be woken it is left: the process ends anyway.
        let woken = short(&self.path, UnixStream::connect).is_ok();
        let _ = fs::remove_file(&self.path);
        if let Some(thread) = self.thread.take().filter(|_| woken) {
            let _ = thread.join();
        }
    }
}

fn serve(client: UnixStream, answer: &impl Fn(&Request) -> Response) -> io::Result<()> {
    client.set_read_timeout(Some(CLIENT_IDLE_MAX))?;
    client.set_write_timeout(Some(CLIENT_IDLE_MAX))?;
    let mut line = Vec::new();
    BufReader::new((&client).take(REQUEST_LEN_MAX)).read_until(b'\n', &mut line)?;
    let response = match serde_json::from_slice(&line) {
        Ok(request) => answer(&request),
        Err(e) => Response::Failed(format!("not understood: {e}")),
    };
    let mut bytes = serde_json::to_vec(&response)?;
    bytes.push(b'\n');
    (&client).write_all(&bytes)
}

/// Asks the process that listens at `path`.
pub fn ask(path: &Path, request: &Request) -> io::Result<Response> {
    let stream = short(path, UnixStream::connect)?;
    stream.set_read_timeout(Some(ANSWER_WAIT_MAX))?;
    let mut bytes = serde_json::to_vec(request)?;
    bytes.push(b'\n');
    (&stream).write_all(&bytes)?;
    let mut line = Vec::new();
    BufReader::new((&stream).take(RESPONSE_LEN_MAX)).read_until(b'\n', &mut line)?;
    Ok(serde_json::from_slice(&line)?)
}

/// Calls `f` with a short name of `path`: the kernel takes no socket address above 107 bytes, and
/// state directories may lie deeper.
///
/// # Errors
/// If the directory cannot be opened; else those of `f`.
pub fn short<T>(path: &Path, f: impl FnOnce(PathBuf) -> io::Result<T>) -> io::Result<T> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let dir = File::open(parent)?;
    f(Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_answered_until_the_end() {
        let base = tempfile::tempdir().unwrap();
        let deep = base.path().join("d".repeat(200));
        fs::create_dir(&deep).unwrap();
        let path = deep.join("control");
        fs::write(&path, "left by a killed process").unwrap();
        let server = ControlServer::start(&path, |request| match request {
            Request::Changes { since, .. } => Response::Failed(format!("since {since}")),
            other => Response::Failed(format!("{other:?}")),
        })
        .unwrap();
        for since in 0..3 {
            let got = ask(&path, &Request::Changes { since, limit: 1 }).unwrap();
            assert_eq!(got, Response::Failed(format!("since {since}")));
        }
        let stream = short(&path, UnixStream::connect).unwrap();
        (&stream).write_all(b"nonsense\n").unwrap();
        let mut text = String::new();
        BufReader::new(&stream).read_line(&mut text).unwrap();
        assert!(text.contains("not understood"), "{text}");
        drop(server);
        assert_eq!(
            ask(&path, &Request::Changes { since: 0, limit: 1 }).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
