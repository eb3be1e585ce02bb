//! Small file systems for tests, where mounting is allowed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system, unmounted when dropped.
pub struct Small(PathBuf);

impl Small {
    /// Makes one of `kind` (`"xfs"`, with 300 MiB, or `"ext4"`, with 24) in a loop image and mounts it at `dir`; says so and gives nothing where that is not possible.
    ///
    /// # Panics
    /// If the image cannot be written.
    pub fn on_disk(kind: &str, dir: &Path, image: &Path) -> Option<Small> {
        let (len, mkfs) = match kind {
            "xfs" => (300 << 20, ["mkfs.xfs", "-q", "-f"]),
            _ => (24 << 20, ["mkfs.ext4", "-q", "-F"]),
        };
        if !has(mkfs[0]) {
            return None;
        }
        fs::create_dir_all(dir).expect("the mount point");
        fs::File::create(image).and_then(|f| f.set_len(len)).expect("the image");
        let made = Command::new(mkfs[0]).args(&mkfs[1..]).arg(image).status();
        assert!(made.expect("just found").success(), "{mkfs:?}");
        mount(Command::new("mount").args(["-o", "loop"]).arg(image), dir)
    }

    /// Mounts one in memory at `dir`; says so and gives nothing where that is not allowed.
    ///
    /// # Panics
    /// If the directory cannot be made.
    pub fn in_memory(dir: &Path, len: &str) -> Option<Small> {
        fs::create_dir_all(dir).expect("the mount point");
        let options = format!("size={len},mode=755");
        mount(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]), dir)
    }
}

fn mount(command: &mut Command, dir: &Path) -> Option<Small> {
    match command.arg(dir).output() {
        Ok(done) if done.status.success() => Some(Small(dir.to_owned())),
        other => {
            eprintln!("skipped: not permitted to mount ({other:?})");
            None
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// True if the program is there; else says that the test is skipped.
pub fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .any(|dir| dir.join(program).is_file());
    if !found {
        eprintln!("skipped: {program} is not installed");
    }
    found
}
