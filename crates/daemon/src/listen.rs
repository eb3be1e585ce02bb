//! Answers connections of other sites. Nothing is read of a stranger but the TLS handshake and one short line, and nothing
//! is done for one but a join with an invitation, the answer to what a join would do, or the proof that a
//! known site has another key now.

use crate::accept::{self, Stop};
use crate::link::{CONNECT_PATIENCE, Open, SILENCE_MAX};
use crate::log;
use crate::node::Shared;
use crate::preface::{self, Request, Response};
use driftless_net::tls::Tls;
use driftless_node::api::Level;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

/// Connections that have not said yet who they are and what they want. More wait in the kernel.
const STRANGERS_MAX: usize = 64;
/// Listens until dropped.
pub(crate) struct Listener {
    address: SocketAddr,
    stop: Stop,
}

impl Listener {
    pub(crate) fn start(listener: TcpListener, node: Arc<Shared>) -> io::Result<Listener> {
        let address = listener.local_addr()?;
        let accept = move || listener.accept().map(|(socket, _)| socket);
        let stop = accept::start("listen", STRANGERS_MAX, accept, move |socket| answer(&node, socket))?;
        Ok(Listener { address, stop })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.set();
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
        let unknown_key = why == UNKNOWN_KEY;
        let _ = preface::write(writer, Response::Refused { why: why.into(), for_now, unknown_key });
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
        (Request::Succeed { volume, document }, _) => match node.take_heir(key, &volume, &document) {
            Ok(()) => preface::write(&mut writer, Response::Succeeded).map_err(|e| e.to_string()),
            Err(why) => refuse(&mut writer, &why, false),
        },
        (_, None) => refuse(&mut writer, UNKNOWN_KEY, false),
        (Request::Succession { volume }, Some(site)) => match node.succession_for(&volume, &site) {
            Some(document) => {
                preface::write(&mut writer, Response::Succession { document }).map_err(|e| e.to_string())
            }
            None => refuse(&mut writer, NO_SUCH_VOLUME, false),
        },
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
        (Request::Known { volume, asked, versions }, Some(site)) => {
            match node.known_for(&volume, &site, &asked, &versions) {
                Some(known) => preface::write(&mut writer, Response::Known(known)).map_err(|e| e.to_string()),
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

/// What whoever has no key that is known is told.
const UNKNOWN_KEY: &str = "this key is not known here: join with an invitation first";

/// Why a link is not taken.
pub(crate) struct Refusal {
    pub(crate) why: String,
    pub(crate) for_now: bool,
}
