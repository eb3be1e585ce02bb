//! The admin endpoint: `GET /metrics` for Prometheus, `GET /health` for load balancers, `GET /volumes/NAME/changes` for programs of
//! this machine. Reads at most a few lines, answers, closes.

use crate::accept::{self, Stop};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// Longest request, in bytes: only its first line is looked at.
const REQUEST_LEN_MAX: u64 = 8 << 10;
/// A client that is slower is left, so that it does not keep the others waiting.
const CLIENT_IDLE_MAX: Duration = Duration::from_secs(2);

/// Clients that are answered at once; some of them wait for changes.
const CLIENTS_MAX: usize = 32;

/// What is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Get {
    pub(crate) path: String,
    query: String,
    /// By a program of this machine.
    pub(crate) local: bool,
}

impl Get {
    /// The value of `key` in the query, as it stands there.
    pub(crate) fn value(&self, key: &str) -> Option<&str> {
        self.query.split('&').filter_map(|pair| pair.split_once('=')).find(|(k, _)| *k == key).map(|(_, v)| v)
    }
}

/// A page: status line, type, body.
pub(crate) type Page = (&'static str, &'static str, String);

/// Answers until dropped.
pub(crate) struct HttpServer {
    address: SocketAddr,
    stop: Stop,
}

impl HttpServer {
    /// `page` gets what is asked for.
    pub(crate) fn start(
        address: SocketAddr,
        page: impl Fn(&Get) -> Page + Send + Sync + 'static,
    ) -> io::Result<HttpServer> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let accept = move || listener.accept().map(|(client, _)| client);
        // What goes wrong with one client is that client's business.
        let served = move |client| drop(serve(client, &page));
        let stop = accept::start("http", CLIENTS_MAX, accept, served)?;
        Ok(HttpServer { address, stop })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.stop.set();
        // Wakes the thread out of `accept`; if it cannot be woken it ends with the process.
        let _ = TcpStream::connect_timeout(&self.address, CLIENT_IDLE_MAX);
    }
}

fn serve(client: TcpStream, page: &impl Fn(&Get) -> Page) -> io::Result<()> {
    let local = client.peer_addr()?.ip().is_loopback();
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
        Some((path, query)) => page(&Get { path: path.into(), query: query.into(), local }),
        None => ("405 Method Not Allowed", "text/plain", "only GET\n".into()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    (&client).write_all(head.as_bytes())?;
    (&client).write_all(body.as_bytes())
}

fn path_of(first: &[u8]) -> Option<(&str, &str)> {
    let line = std::str::from_utf8(first).ok()?;
    let mut words = line.split_ascii_whitespace();
    let path = words.next().filter(|method| *method == "GET").and(words.next())?;
    Some(path.split_once('?').unwrap_or((path, "")))
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
        let server = HttpServer::start(any, |get| {
            assert!(get.local && get.value("y").is_none());
            ("200 OK", "text/plain", format!("{} {:?}", get.path, get.value("x")))
        })
        .unwrap();
        let text = get(server.address(), "GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(
            text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\n/metrics Some(\"1\")"),
            "{text}"
        );
        let text = get(server.address(), "POST / HTTP/1.1\r\n\r\n");
        assert!(text.starts_with("HTTP/1.1 405"), "{text}");
    }
}
