//! What no library asks the system for. All `unsafe` code of the crate is here.
#![allow(unsafe_code)]

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;

/// As much of `struct tcp_info` (Linux, `include/uapi/linux/tcp.h`) as is looked at. The kernel only ever adds to its end.
const INFO_LEN: usize = 184;
/// Where it says in its lowest bit that [`DELIVERY_RATE_AT`] is of a time in which there was too little to send.
const APP_LIMITED_AT: usize = 7;
/// Microseconds of the shortest round trip so far; all ones if there was none.
const LEAST_RTT_AT: usize = 148;
/// Bytes per second, of the last flight that was acknowledged.
const DELIVERY_RATE_AT: usize = 160;
/// Microseconds so far in which anything was on its way.
const BUSY_AT: usize = 168;
/// Those of them in which the other end's window was full.
const WINDOW_FULL_AT: usize = 176;

/// What the kernel knows of how fast a connection gets rid of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TcpInfo {
    pub(crate) delivery_bytes_per_s: u64,
    pub(crate) app_limited: bool,
    pub(crate) least_rtt_us: u32,
    pub(crate) busy_us: u64,
    pub(crate) window_full_us: u64,
}

/// Asks for it.
///
/// # Errors
/// If the kernel does not say that much (before Linux 4.10).
pub(crate) fn tcp_info(socket: &TcpStream) -> io::Result<TcpInfo> {
    let mut bytes = [0u8; INFO_LEN];
    let mut len = INFO_LEN as libc::socklen_t;
    // SAFETY: the descriptor is open for as long as `socket` is borrowed; both pointers are to locals of this call, and the kernel writes no more
    // than `len` bytes to the first, which has so many.
    let r = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            bytes.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if r != 0 {
        return Err(io::Error::last_os_error());
    }
    if (len as usize) < INFO_LEN {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let number =
        |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes);
    Ok(TcpInfo {
        delivery_bytes_per_s: number(DELIVERY_RATE_AT),
        app_limited: bytes[APP_LIMITED_AT] & 1 == 1,
        least_rtt_us: bytes[LEAST_RTT_AT..].first_chunk().map_or(u32::MAX, |b| u32::from_ne_bytes(*b)),
        busy_us: number(BUSY_AT),
        window_full_us: number(WINDOW_FULL_AT),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    #[test]
    fn the_kernel_says_how_fast_bytes_left() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut out = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut into = listener.accept().unwrap().0;
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            into.read_to_end(&mut all).unwrap();
            all.len()
        });
        let first = tcp_info(&out).unwrap();
        out.write_all(&vec![7; 8 << 20]).unwrap();
        let info = tcp_info(&out).unwrap();
        assert!(info.delivery_bytes_per_s > 1 << 20, "{info:?}");
        assert!(info.busy_us >= first.busy_us && info.busy_us < 3_600_000_000, "{info:?}");
        assert!(info.window_full_us <= info.busy_us, "{info:?}");
        assert!(first.least_rtt_us > 0 && first.least_rtt_us < 60_000_000, "{first:?}");
        drop(out);
        assert_eq!(reader.join().unwrap(), 8 << 20);
    }
}
