//! What is said on a terminal.

use crate::common::*;
use driftless_testkit::{Spec, grow};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::fs::File;
use std::io::Read as _;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

/// Everything the command draws, as it comes.
#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl Screen {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    fn wait_for(&self, wanted: &str) {
        wait_until(wanted, || match self.text() {
            text if text.contains(wanted) => Ok(()),
            text => Err(text),
        });
    }
}

#[test]
fn a_live_line_shows_how_it_goes() {
    let pair = Pair::new();
    grow(&pair.a, 70, &Spec::plain(200, 1000)).unwrap();
    let pty = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&pty).unwrap();
    unlockpt(&pty).unwrap();
    tcsetwinsize(&pty, Winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    let terminal = ioctl_tiocgptpeer(&pty, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    let mut command = pair.sync_command(&[]);
    command.env("TERM", "xterm").stdout(Stdio::piped()).stderr(terminal);
    let mut child = command.spawn().unwrap();
    // The parent's copy of the terminal's other end must go, or reading never ends.
    drop(command);
    let screen = Screen::default();
    let reader = {
        let (screen, mut pty) = (screen.clone(), File::from(pty));
        std::thread::spawn(move || {
            let mut buf = [0; 4096];
            while let Ok(n @ 1..) = pty.read(&mut buf) {
                screen.0.lock().unwrap().extend_from_slice(&buf[..n]);
            }
        })
    };
    screen.wait_for("in sync · ");
    put(&pair.b, "one more", "x");
    screen.wait_for("last change ");
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT)
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    reader.join().unwrap();
    screen.wait_for("stopping:");
    let summary = std::io::read_to_string(child.stdout.take().unwrap()).unwrap();
    assert!(summary.starts_with("in sync: "), "{summary}");
}
