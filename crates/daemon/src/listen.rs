//! Answers connections of other sites. Nothing is read of a stranger but the TLS handshake and one short line, and nothing
//! is done for one but a join with an invitation, or the answer to what a join would do.

use crate::link::{CONNECT_PATIENCE, Open, SILENCE_MAX};
use crate::log;
use crate::node::Shared;
use crate::preface::{self, Request, Response};
use driftless_net::tls::Tls;
use driftless_node::api::Level;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Connections that have not said yet who they are and what they want. More wait in the kernel.
const STRANGERS_MAX: usize = 64;
/// A pause after `accept` failed (no descriptors left, most likely).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Listens until dropped.
pub(crate) struct Listener {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl Listener {
    pub(crate) fn start(listener: TcpListener, node: Arc<Shared>) -> io::Result<Listener> {
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let strangers = Arc::new(AtomicUsize::new(0));
        std::thread::Builder::new().name("listen".into()).spawn(move || {
            for socket in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(socket) = socket else {
                    std::thread::sleep(ACCEPT_PAUSE);
                    continue;
                };
                if strangers.fetch_add(1, Ordering::SeqCst) >= STRANGERS_MAX {
                    strangers.fetch_sub(1, Ordering::SeqCst);
                    continue; // hung up: it comes again
                }
                let (node, strangers) = (node.clone(), strangers.clone());
                let thread = std::thread::Builder::new().name("stranger".into()).spawn(move || {
                    answer(&node, socket);
                    strangers.fetch_sub(1, Ordering::SeqCst);
                });
                // No thread: the other side sees that it was hung up on, and comes again.
                drop(thread);
            }
        })?;
        Ok(Listener { address, stop })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let mut to = self.address;
        if to.ip().is_unspecified() {
            to.set_ip(if to.is_ipv4() {
                std::net::Ipv4Addr::LOCALHOST.into()
            } else {
                std::net::Ipv6Addr::LOCALHOST.into()
            });
        }
        // Wakes the thread out of `accept`; if it cannot be woken it ends with the process.
        let _ = TcpStream::connect_timeout(&to, CONNECT_PATIENCE);
    }
}

fn answer(node: &Shared, socket: TcpStream) {
    let from = socket.peer_addr().map_or_else(|_| "unknown".into(), |a| a.to_string());
    let refused = |text: &str, site: &str| log::line(Level::Warn, text, &[("from", &from), ("site", site)]);
    let tls = match node.tls.accept(socket, CONNECT_PATIENCE) {
        Ok(tls) => tls,
        Err(e) => return refused(&format!("refused a connection: {e}"), "?"),
    };
    let key = tls.peer;
    let site = node.site_of(&key);
    let name = site.clone().unwrap_or_else(|| format!("unknown key {}", key.short()));
    if let Err(e) = converse(node, tls, site, &from) {
        refused(&format!("refused: {e}"), &name);
    }
}

/// Reads what is wanted and answers; why not, if it was not.
fn converse(node: &Shared, tls: Tls, site: Option<String>, from: &str) -> Result<(), String> {
    let key = tls.peer;
    let (mut reader, mut writer, stop) = tls.split(SILENCE_MAX).map_err(|e| e.to_string())?;
    let request: Request = preface::read(&mut reader).map_err(|e| e.to_string())?;
    let refuse = |writer: &mut _, why: &str, for_now: bool| {
        // Who has hung up needs no answer.
        let _ = preface::write(writer, Response::Refused { why: why.into(), for_now });
        Err(why.to_owned())
    };
    match (request, site) {
        (Request::Join { secret, name, addresses }, _) => {
            match node.take_join(&secret, &name, key, addresses) {
                Ok(response) => preface::write(&mut writer, response).map_err(|e| e.to_string()),
                Err(why) => refuse(&mut writer, &why, false),
            }
        }
        (Request::Preview { secret, name, volume, after }, _) => {
            match node.preview(&secret, (&name, key), volume.as_deref(), after) {
                Ok(response) => preface::write(&mut writer, response).map_err(|e| e.to_string()),
                Err(why) => refuse(&mut writer, &why, false),
            }
        }
        (_, None) => refuse(&mut writer, "this key is not known here: join with an invitation first", false),
        (Request::Volume { name }, Some(site)) => match node.volume_info(&name, &site) {
            Some(info) => preface::write(&mut writer, Response::Volume(info)).map_err(|e| e.to_string()),
            None => refuse(&mut writer, NO_SUCH_VOLUME, false),
        },
        (Request::Why { volume, path_hex, asked }, Some(site)) => {
            match node.why_for(&volume, &site, &path_hex, &asked) {
                Some(found) => preface::write(&mut writer, Response::Why(found)).map_err(|e| e.to_string()),
                None => refuse(&mut writer, NO_SUCH_VOLUME, false),
            }
        }
        (Request::Flush { volume, asked, timeout_s }, Some(site)) => {
            match node.flush_for(&volume, &site, &asked, timeout_s) {
                Some(held) => preface::write(&mut writer, Response::Flushed(held)).map_err(|e| e.to_string()),
                None => refuse(&mut writer, NO_SUCH_VOLUME, false),
            }
        }
        (Request::Link { volume, addresses }, Some(site)) => {
            match node.accept_link(&volume, &site, addresses) {
                Ok(link) => {
                    preface::write(&mut writer, Response::Linked).map_err(|e| e.to_string())?;
                    link(Box::new(Open { reader, writer, stop, from: from.to_owned(), key }));
                    Ok(())
                }
                Err(Refusal { why, for_now }) => refuse(&mut writer, &why, for_now),
            }
        }
    }
}

/// Unknown and forbidden volumes get the same answer.
pub(crate) const NO_SUCH_VOLUME: &str =
    "there is no such volume for this site: link it there first (driftless link create)";

/// Why a link is not taken.
pub(crate) struct Refusal {
    pub(crate) why: String,
    pub(crate) for_now: bool,
}
