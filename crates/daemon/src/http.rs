//! The admin endpoint: `GET /metrics` for Prometheus, `GET /health` for load balancers. Reads at most a few lines, answers, closes.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Longest request, in bytes: only its first line is looked at.
const REQUEST_LEN_MAX: u64 = 8 << 10;
/// A client that is slower is left, so that it does not keep the others waiting.
const CLIENT_IDLE_MAX: Duration = Duration::from_secs(2);

/// A page: status line, type, body.
pub(crate) type Page = (&'static str, &'static str, String);

/// Answers until dropped.
pub(crate) struct HttpServer {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl HttpServer {
    /// `page` gets a path.
    pub(crate) fn start(
        address: SocketAddr,
        page: impl Fn(&str) -> Page + Send + 'static,
    ) -> io::Result<HttpServer> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        std::thread::Builder::new().name("http".into()).spawn(move || {
            for client in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                // What goes wrong with one client is that client's business.
                let _ = client.and_then(|client| serve(client, &page));
            }
        })?;
        Ok(HttpServer { address, stop })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the thread out of `accept`; if it cannot be woken it ends with the process.
        let _ = TcpStream::connect_timeout(&self.address, CLIENT_IDLE_MAX);
    }
}

fn serve(client: TcpStream, page: &impl Fn(&str) -> Page) -> io::Result<()> {
    client.set_read_timeout(Some(CLIENT_IDLE_MAX))?;
    client.set_write_timeout(Some(CLIENT_IDLE_MAX))?;
    let mut reader = BufReader::new((&client).take(REQUEST_LEN_MAX));
    let mut first = Vec::new();
    reader.read_until(b'\n', &mut first)?;
    // The rest of the head is read, or closing would reset the connection before the answer is seen.
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 2 {
        line.clear();
    }
    let (status, kind, body) = match path_of(&first) {
        Some(path) => page(path),
        None => ("405 Method Not Allowed", "text/plain", "only GET\n".into()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    (&client).write_all(head.as_bytes())?;
    (&client).write_all(body.as_bytes())
}

fn path_of(first: &[u8]) -> Option<&str> {
    let line = std::str::from_utf8(first).ok()?;
    let mut words = line.split_ascii_whitespace();
    let path = words.next().filter(|method| *method == "GET").and(words.next())?;
    Some(path.split('?').next().unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn pages_are_served() {
        let any = "127.0.0.1:0".parse().unwrap();
        let server = HttpServer::start(any, |path| ("200 OK", "text/plain", path.to_owned())).unwrap();
        let text = get(server.address(), "GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\n/metrics"), "{text}");
        let text = get(server.address(), "POST / HTTP/1.1\r\n\r\n");
        assert!(text.starts_with("HTTP/1.1 405"), "{text}");
    }
}
