#!/usr/bin/env python3
"""Cuts the power under a real `driftless sync`, again and again, and asks after each cut what is left.

    cargo build -p driftless --features crash-points && sudo scripts/power-cut.py --cuts 1000 ext4

The trees and the index lie on file systems in loop images. Random users work on both sides; some of what they write
they make durable (fsync of the file and of all directories above it). The cut is the file system's shutdown without
flushing its log, at a named point of the program (feature `crash-points`) or at a random moment; then unmount, mount
with log replay, and `sync --once`. Layouts: everything on one file system (`one`), or each tree and the index on one
of its own (`apart`), of which a random selection is cut at the same moment while the rest sees the process killed. Points
take turns: the one that was cut at least often is next, so that all are seen; the table at the end says how often.

After each cut:
- both trees are equal (rsync, contents and all attributes);
- what a user made durable, and nobody who saw it replaced or removed, is there;
- what both sides had when they were last in sync is there, or a whole version that replaced it, unless a user removed
  it: what a cut leaves of a version half written has not taken the place of a good one;
- nothing is back that was gone when they were last in sync;
- nobody's files are as they were, without copies, where nobody worked; and no copies of what nobody wrote;
- a second run has nothing to do; staging and limbo are empty.

Needs root, loop devices, mkfs for the file system, and rsync; says what is missing and exits with 77. `--keep DIR` gets
trees and a log of what failed: that depends on timing, a seed is no more than a beginning.

What users write without syncing it begins when both sides have begun to look at their trees: who ran no program when the
power went cannot know that an emptied file is none that a user emptied.
"""
import argparse
import ctypes
import fcntl
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time

SKIPPED = 77
LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, RENAME_NOREPLACE = -100, 1
# _IOR('X', 125, __u32): EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN are one number, and so are their flags.
IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2
MKFS = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
}
IMAGE_BYTES = 320 << 20  # XFS takes no less than 300 MB
POINTS = [
    "local-recorded", "local-durable", "merged", "receipt-due", "staged", "staged-durable", "intended", "dir-made",
    "moved", "exchanged", "in-limbo", "removed", "dir-removed", "linked", "parked", "moves-done", "moves-recorded",
    "seal-due", "seal-synced", "seal-hardened", "limbo-dropped", "seal-dropped", "sealed",
]
# Where a cut is that was at no point, and how many are meant to be.
RANDOM, RANDOM_SHARE = "random", 0.2
RESTART_POINTS = ["intents-judged", "intents-redone"]
LAYOUTS = {"one": {"a": 0, "b": 0, "state": 0}, "apart": {"a": 0, "b": 1, "state": 2}, "peer": {"a": 0, "b": 1, "state": 0}}
CUTS_PER_WORLD = 12
FAILED_MAX = 50  # more tell nothing new
PATIENCE_S = 400  # a process may be suspended from outside for minutes
QUIET_S = 0.6  # the program seals after 0.3 s in which nothing happened
SIZES = [0, 10, 300, 5_000, 60_000, 200_000, 700_000]
SIZE_WEIGHTS = [0, 6, 6, 4, 2, 1, 1]


class Skip(Exception):
    """Something that is needed is not here."""


class Failure(Exception):
    """What must not be, is."""


def run(*command, **more):
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, **more)


def must(*command):
    done = run(*command)
    if done.returncode:
        raise Skip(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


class Disk:
    """A file system in a loop image."""

    def __init__(self, base, kind, name):
        self.kind, self.image, self.at = kind, os.path.join(base, name + ".img"), os.path.join(base, name)
        self.loop = None
        with open(self.image, "wb") as f:
            f.truncate(IMAGE_BYTES)
        must(*MKFS[kind], self.image)
        os.mkdir(self.at)
        self.loop = must("losetup", "-f", "--show", self.image)
        self.mount()

    def mount(self):
        must("mount", "-t", self.kind, self.loop, self.at)

    def cut(self):
        """Takes the power away: nothing that is not on the disk now will be."""
        try:
            fd = os.open(self.at, os.O_RDONLY)
        except OSError:
            return  # it was cut a moment ago
        try:
            fcntl.ioctl(fd, IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def unmount(self):
        for _ in range(200):
            if run("umount", self.at).returncode == 0:
                return
            time.sleep(0.02)  # what a killed process had open goes after it
        raise Skip(f"cannot unmount {self.at}: {run('umount', self.at).stderr}")

    def drop(self):
        run("umount", "-l", self.at)
        if self.loop:
            run("losetup", "-d", self.loop)


def whole(name, size):
    """The content of version `name`: of a size that its name says, and telling itself from any other."""
    line = f"{name} {size}\n".encode()
    return (line * (size // len(line) + 1))[: max(size, len(line))]


def read(path):
    """Which version a file holds; `torn ...` if it is none as it was written; None if it is not there."""
    try:
        with open(path, "rb") as f:
            return version_of(f.read())
    except OSError:
        return None


def version_of(data):
    head = data.split(b"\n", 1)[0].split(b" ")
    if len(head) == 2 and head[1].isdigit() and data == whole(head[0].decode("latin1"), int(head[1])):
        return head[0].decode("latin1")
    return f"torn {len(data)} {data[:20]!r}"


def move(path, to):
    """Renames over nothing: what the program has just put there was not seen."""
    done = LIBC.renameat2(AT_FDCWD, os.fsencode(path), AT_FDCWD, os.fsencode(to), RENAME_NOREPLACE)
    if done != 0:
        raise OSError(ctypes.get_errno(), "not moved", path)


def sync_up(path, root):
    """Makes a name durable: all directories from it up to the root."""
    while True:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        if path == root:
            return
        path = os.path.dirname(path)


def walk(root):
    dirs, files = [root], []
    for at, below, names in os.walk(root):
        if ".driftless" in below:
            below.remove(".driftless")
        dirs += [os.path.join(at, d) for d in below]
        files += [os.path.join(at, f) for f in names]
    return dirs, files


def free(path):
    """Where nobody works."""
    return "/still" not in path


class Cut:
    """One run of the program that the power is taken from: where `point` says, else when this ends."""

    def __init__(self, world, point, *flags):
        self.world, self.point, self.flags = world, point, flags
        self.fifo = os.path.join(world.options.base, "hook")
        self.fell = threading.Event()  # the point was reached
        self.needed = True  # the power goes even if it was not
        rnd, disks = world.rnd, world.disks
        self.victims = [d for d in disks if rnd.random() < 0.6] or [rnd.choice(disks)]
        self.listener = None

    def __enter__(self):
        self.world.say("CUT of", [d.at for d in self.victims], "at", self.point, *self.flags)
        env = dict(os.environ)
        if self.point:
            env["DRIFTLESS_CRASH_AT"] = self.point
            env["DRIFTLESS_CRASH_HOOK"] = f"echo cut > {self.fifo}; cat {self.fifo}.done"
            for path in (self.fifo, self.fifo + ".done"):
                if os.path.exists(path):
                    os.unlink(path)
                os.mkfifo(path)
            self.listener = threading.Thread(target=self.listen)
            self.listener.start()
        log = self.world.log
        self.log_from = os.fstat(log.fileno()).st_size
        self.process = subprocess.Popen(self.world.sync(*self.flags), stdout=log, stderr=log, env=env)
        return self

    def __exit__(self, failed, *_):
        cut = self.fell.is_set()
        if not cut and self.needed:
            cut = True
            for disk in self.victims:
                disk.cut()
        self.process.kill()
        self.process.wait()
        if self.listener:
            self.release()
            self.listener.join()
            cut = cut or self.fell.is_set()
        if not cut:
            return
        for disk in self.victims:
            disk.unmount()
            disk.mount()
        where = self.point.split(":")[0] if self.fell.is_set() else RANDOM
        self.world.tally.note(where, self.world.layout)
        self.world.say("CUT at", where)

    def is_up(self):
        """True once both sides look at their trees: from here on they know that the run did not end."""
        told = os.pread(self.world.log.fileno(), 4096, self.log_from)
        return b"A: scanning" in told and b"B: scanning" in told

    def listen(self):
        """The point is reached: cut, then let the hook go on to the kill."""
        with open(self.fifo) as f:
            if f.read().strip() != "cut":
                return
        self.fell.set()
        for disk in self.victims:
            disk.cut()
        try:
            with open(self.fifo + ".done", "w") as f:
                f.write("done\n")
        except BrokenPipeError:
            pass  # the hook was killed

    def release(self):
        """Nobody came by the point: the listener waits no more."""
        for path, flags in ((self.fifo, os.O_WRONLY), (self.fifo + ".done", os.O_RDONLY)):
            try:
                os.close(os.open(path, flags | os.O_NONBLOCK))
            except OSError:
                pass


class World:
    """Two trees, what their users did, and what has to be so."""

    def __init__(self, options, kind, layout, disks, seed, tally):
        self.options, self.kind, self.layout, self.seed, self.tally = options, kind, layout, seed, tally
        self.rnd = random.Random(seed)
        self.where = {what: disks[i] for what, i in LAYOUTS[layout].items()}
        self.disks = [disks[i] for i in sorted(set(LAYOUTS[layout].values()))]
        self.a, self.b, self.state = (
            os.path.join(self.where[what].at, f"{what}-{seed}") for what in ("a", "b", "state")
        )
        self.log = open(os.path.join(options.base, "log"), "w+")
        self.count = 0
        self.durable = set()  # versions that a user made durable
        self.removed = set()  # versions that a user took away
        self.after = {}  # version -> those that replaced it, with the side where
        self.blurred = set()  # versions that a user may have replaced without our seeing which
        self.in_sync = set()  # what both sides had at the last check
        self.gone = set()  # what was nowhere at the last check
        self.written = set()
        self.copies = set()
        self.still = {}
        for root in (self.a, self.b):
            os.mkdir(root)
            os.makedirs(self.trash(root))

    def trash(self, root):
        return root + "-trash"

    def say(self, *what):
        text = " ".join(str(w) for w in what).replace(self.options.base, "")
        self.log.write("%.3f USER %s\n" % (time.time() % 1000, text))
        self.log.flush()

    # ----- users

    def new(self):
        self.count += 1
        size = self.rnd.choices(SIZES, SIZE_WEIGHTS)[0]
        name = f"v{self.seed}-{self.count}"
        self.written.add(name)
        return name, whole(name, size)

    def note_after(self, old, new, root):
        self.after.setdefault(old, []).append((new, root))

    def take(self, path, root):
        """Removes a file, and knows what went with it."""
        self.count += 1
        to = os.path.join(self.trash(root), str(self.count))
        before = read(path)
        os.rename(path, to)
        # The power may go between the two.
        return read(to) or before

    def write(self, path, flags, data, name, durable, root):
        fd = os.open(path, flags, 0o644)
        try:
            if flags & os.O_CREAT == 0:
                # What is open is what is written over, whatever has taken the name since.
                old = version_of(os.pread(fd, max(SIZES) + 100, 0))
                self.note_after(old, name, root)
                self.say("    over", old)
                os.ftruncate(fd, 0)
            at = 0
            while at < len(data):
                at += os.write(fd, data[at : at + 65536])
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        if durable:
            sync_up(os.path.dirname(path), root)
            self.durable.add(name)

    def step(self, root):
        try:
            self.one_step(root)
        except (OSError, UnicodeDecodeError) as e:
            self.say("   ", e)

    def one_step(self, root):
        rnd = self.rnd
        dirs, files = walk(root)
        dirs, files = [d for d in dirs if free(d)], [f for f in files if free(f)]
        op = rnd.choice(
            ["create"] * 5 + ["over"] * 4 + ["save"] * 3 + ["mv"] * 3 + ["rm"] * 2 + ["mkdir"] * 2
            + ["mvdir", "rmr", "ln", "chmod", "mvover", "swap", "touchdir"]
        )
        durable = rnd.random() < 0.5
        spot = os.path.join(rnd.choice(dirs), rnd.choice("abcdefgh"))
        if op == "create" and not os.path.lexists(spot):
            name, data = self.new()
            self.say(op, spot, name, len(data), "durable" * durable)
            self.write(spot, os.O_CREAT | os.O_EXCL | os.O_WRONLY, data, name, durable, root)
        elif op == "over" and files:
            path = rnd.choice(files)
            name, data = self.new()
            self.say(op, path, name, len(data), "durable" * durable)
            self.write(path, os.O_RDWR, data, name, durable, root)
        elif op == "save" and files:
            path = rnd.choice(files)
            name, data = self.new()
            self.say(op, path, name, len(data), "durable" * durable)
            self.write(path + ".tmp", os.O_CREAT | os.O_EXCL | os.O_WRONLY, data, name, durable, root)
            # Another name for what goes: what it is is known for sure only after the rename.
            self.count += 1
            kept = os.path.join(self.trash(root), str(self.count))
            os.link(path, kept)
            names = os.stat(kept).st_nlink
            os.rename(path + ".tmp", path)
            self.note_after(read(kept), name, root)
            if os.stat(kept).st_nlink >= names:
                # The program took the name in between: what went is what it had just put there.
                self.say("    over what came that moment")
                self.blurred |= self.written
            os.unlink(kept)
            if durable:
                sync_up(os.path.dirname(path), root)
        elif op == "mv" and files and not os.path.lexists(spot):
            path = rnd.choice(files)
            self.say(op, path, spot)
            move(path, spot)
        elif op == "mvover" and len(files) > 1:
            path, to = rnd.sample(files, 2)
            if not os.path.samefile(path, to):
                self.removed.add(self.take(to, root))
                self.say(op, path, to)
                move(path, to)
        elif op == "swap":
            some = dirs[1:] if rnd.random() < 0.3 else files
            if len(some) < 2:
                return
            path, to = rnd.sample(some, 2)
            if (path + "/").startswith(to + "/") or (to + "/").startswith(path + "/"):
                return
            self.say(op, path, to)
            self.count += 1
            aside = f"{path}.swap{self.count}"
            move(path, aside)
            move(to, path)
            move(aside, to)
        elif op == "mvdir" and len(dirs) > 1:
            path = rnd.choice(dirs[1:])
            if not spot.startswith(path + "/") and not os.path.lexists(spot):
                self.say(op, path, spot)
                move(path, spot)
        elif op == "rm" and files:
            path = rnd.choice(files)
            gone = self.take(path, root)
            self.removed.add(gone)
            self.say(op, path, gone)
        elif op == "mkdir" and not os.path.lexists(spot):
            self.say(op, spot)
            os.mkdir(spot)
        elif op == "rmr" and len(dirs) > 1:
            path = rnd.choice(dirs[1:])
            self.say(op, path)
            for f in walk(path)[1]:
                self.removed.add(self.take(f, root))
            for at, _, _ in os.walk(path, topdown=False):
                os.rmdir(at)
        elif op == "ln" and files and not os.path.lexists(spot):
            path = rnd.choice(files)
            self.say(op, path, spot)
            os.link(path, spot)
        elif op == "chmod" and files:
            path, mode = rnd.choice(files), rnd.choice([0o644, 0o600, 0o755])
            self.say(op, path, oct(mode))
            os.chmod(path, mode)
        elif op == "touchdir" and len(dirs) > 1:
            second = rnd.randrange(2_000_000_000)
            os.utime(rnd.choice(dirs[1:]), (second, second))

    # ----- the program

    def sync(self, *flags):
        command = [self.options.driftless, "sync", "--max-delete", "100%", "-v", *flags, "--state", self.state]
        return [*command, self.a, self.b]

    def once(self):
        try:
            done = run(*self.sync("--once"))
        except subprocess.TimeoutExpired:
            raise Failure("sync --once hangs")
        self.log.write(done.stdout + done.stderr)
        self.log.flush()
        return done

    def first(self):
        """Something to begin with, and files that nobody will ever touch."""
        for root, letter in ((self.a, "a"), (self.b, "b")):
            os.makedirs(f"{root}/still-{letter}/deep")
            for i in range(6):
                name, data = self.new()
                below = f"still-{letter}/{'deep/' * (i % 2)}{i}"
                self.still[below] = name
                with open(os.path.join(root, below), "wb") as f:
                    f.write(data)
            for _ in range(12):
                self.step(root)
        done = self.once()
        if done.returncode:
            raise Failure(f"the first run ends with {done.returncode}: {done.stderr[-500:]}")
        self.check()

    def play(self, point):
        """Users work while it runs, until the power goes."""
        with Cut(self, point) as cut:
            self.work(cut, point)

    def recover_in_vain(self, point):
        """The power goes again while it recovers, if it passes the point."""
        with Cut(self, point, "--once") as cut:
            cut.needed = False
            while cut.process.poll() is None and not cut.fell.wait(0.005):
                pass

    def work(self, cut, point):
        end = time.time() + self.rnd.random() * self.options.work_s
        if point:
            end += self.options.work_s
        # Seals are for quiet moments.
        pause_at = time.time() + self.rnd.random() * (end - time.time())
        if (point and ("seal" in point or "limbo-dropped" in point)) or self.rnd.random() < 0.3:
            end += QUIET_S
        else:
            pause_at = end
        up = False
        while time.time() < end and not cut.fell.is_set():
            if time.time() > pause_at:
                pause_at = end
                cut.fell.wait(QUIET_S)
            if cut.process.poll() is not None and not cut.fell.wait(0.05):
                raise Failure(f"it ended by itself with {cut.process.returncode}")
            if not up:
                up = cut.is_up()
                time.sleep(0.002)
                continue
            self.step(self.a if self.rnd.random() < 0.5 else self.b)
            time.sleep(self.rnd.random() * 0.01)

    # ----- what has to be so

    def recover(self):
        for attempt in range(3):
            done = self.once()
            if done.returncode == 0:
                break
            self.say("attempt", attempt, "ended with", done.returncode)
        if done.returncode:
            raise Failure(f"sync --once ends with {done.returncode}: {done.stderr[-800:]}")
        self.check()
        done = self.once()
        if done.returncode or "0 entries" not in done.stderr + done.stdout:
            raise Failure(f"a second run: {done.returncode} {done.stdout[-300:]}{done.stderr[-800:]}")

    def check(self):
        flags = ["-aHAXSn", "--delete", "--checksum", "--itemize-changes", "--exclude=/.driftless"]
        differ = run("rsync", *flags, self.a + "/", self.b + "/")
        if differ.returncode or differ.stdout.strip():
            raise Failure(f"the trees differ: {differ.stdout}{differ.stderr}")
        for root in (self.a, self.b):
            for part in ("staging", "limbo"):
                left = [f for f in walk(os.path.join(root, ".driftless", part))[1]]
                if left:
                    raise Failure(f"left behind: {left}")
        files = {f: read(f) for f in walk(self.a)[1]}
        have = set(files.values())
        self.check_losses(have)
        back = self.gone & have
        if back:
            raise Failure(f"back again: {sorted(back)}")
        for below, name in self.still.items():
            if read(os.path.join(self.a, below)) != name:
                raise Failure(f"{below} was touched by nobody and is {read(os.path.join(self.a, below))}")
        copies = {f: c for f, c in files.items() if ".conflict-" in f}
        odd = [f for f, c in copies.items() if f not in self.copies and ("/still" in f)]
        odd += [f for f in files if "/still" in f and os.path.relpath(f, self.a) not in self.still]
        if odd:
            raise Failure(f"copies where nobody worked: {odd}")
        self.copies = set(copies)
        self.in_sync = have & self.written
        self.gone = self.written - have
        self.after, self.blurred, self.durable = {}, set(), self.durable & have

    def check_losses(self, have):
        replaced = {old for old, new in self.after.items() if new}
        replaced |= self.blurred
        lost = [c for c in self.durable if c not in have and c not in self.removed and c not in replaced]
        if lost:
            raise Failure(f"lost what was durable: {sorted(lost)}")
        lost = [c for c in self.in_sync if not self.is_accounted_for(c, have)]
        if lost:
            raise Failure(f"lost what both sides had: {sorted(lost)}, after {[self.after.get(c) for c in sorted(lost)]}")

    def is_accounted_for(self, version, have):
        if version in have or version in self.removed or version in self.blurred:
            return True
        if len(self.writers_after(version)) > 1:
            return True  # both users wrote over it
        return any(self.is_accounted_for(new, have) for new, _ in self.after.get(version, []))

    def writers_after(self, version):
        after = self.after.get(version, [])
        return {root for _, root in after}.union(*(self.writers_after(new) for new, _ in after))

    def drop(self):
        self.log.close()
        for root in (self.a, self.b):
            shutil.rmtree(root, ignore_errors=True)
            shutil.rmtree(self.trash(root), ignore_errors=True)
        shutil.rmtree(self.state, ignore_errors=True)

    def keep(self, why):
        print(f"FAIL {self.kind} {self.layout} seed {self.seed}: {why}", flush=True)
        self.log.write(f"FAIL {why}\n")
        if not self.options.keep:
            return
        to = os.path.join(self.options.keep, f"{self.kind}-{self.layout}-{self.seed}")
        shutil.rmtree(to, ignore_errors=True)
        os.makedirs(to)
        self.log.flush()
        run("cp", "-a", os.path.join(self.options.base, "log"), self.a, self.b, self.state, to)


def check_needs(options, kind):
    if os.geteuid() != 0:
        raise Skip("needs root")
    for program in (MKFS[kind][0], "rsync", "losetup"):
        if not shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin"):
            raise Skip(f"{program} is not installed")
    if not os.path.exists("/dev/loop-control"):
        raise Skip("there are no loop devices")
    if not os.access(options.driftless, os.X_OK):
        raise Skip(f"{options.driftless} is not there: cargo build -p driftless --features crash-points")


class Tally:
    """How often each point was cut at, and what failed after that."""

    def __init__(self):
        self.cuts = {}  # (point, layout) -> number
        self.failed = {}
        self.asked = {}  # point -> how often it was to be cut at
        self.last = None

    def note(self, point, layout):
        self.last = (point, layout)
        self.cuts[self.last] = self.cuts.get(self.last, 0) + 1

    def note_failure(self):
        self.failed[self.last] = self.failed.get(self.last, 0) + 1

    def cuts_at(self, point):
        return sum(n for (p, _), n in self.cuts.items() if p == point)

    def next_of(self, rnd, points):
        """The point that was seen least; one that is hardly ever reached does not take all the time."""
        least = min(points, key=lambda p: (self.cuts_at(p) + self.asked.get(p, 0) / 4, rnd.random()))
        self.asked[least] = self.asked.get(least, 0) + 1
        seldom = self.cuts_at(least) * 3 < self.asked[least]
        return f"{least}:{1 if seldom else rnd.choice([1, 1, 2, 3, 5, 8])}"

    def table(self):
        layouts = sorted({layout for _, layout in self.cuts})
        rows = [["point", *layouts, "cuts", "failed"]]
        for point in [RANDOM, *POINTS, *RESTART_POINTS]:
            of = [self.cuts.get((point, layout), 0) for layout in layouts]
            failed = sum(n for at, n in self.failed.items() if at and at[0] == point)
            rows.append([point, *of, sum(of), failed])
        sums = [sum(row[i] for row in rows[1:]) for i in range(1, len(rows[0]))]
        rows.append(["all", *sums])
        return "\n".join("%-16s" % row[0] + "".join("%8s" % cell for cell in row[1:]) for row in rows)


def choose_point(rnd, options, tally, restart=False):
    if options.point:
        return options.point if ":" in options.point else f"{options.point}:{rnd.randrange(1, 6)}"
    if restart:
        return tally.next_of(rnd, RESTART_POINTS if rnd.random() < 0.5 else POINTS)
    return None if rnd.random() < RANDOM_SHARE else tally.next_of(rnd, POINTS)


def cut_world(options, kind, layout, disks, seed, cuts, tally):
    """One world; gives whether it failed."""
    world, done = World(options, kind, layout, disks, seed, tally), 0
    try:
        world.first()
        while done < cuts:
            world.play(choose_point(world.rnd, options, tally))
            done += 1
            if world.rnd.random() < 0.25 and not options.point:
                world.recover_in_vain(choose_point(world.rnd, options, tally, restart=True))
            world.recover()
        return False
    except Failure as why:
        tally.note_failure()
        world.keep(why)
        return True
    finally:
        world.drop()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=sorted(MKFS), help="file system")
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="seed of the first world")
    parser.add_argument("--layout", choices=sorted(LAYOUTS), help="one for all; else they take turns")
    parser.add_argument("--point", help="NAME or NAME:N for every cut; else random ones, and random moments")
    parser.add_argument("--work-s", type=float, default=0.7, help="how long users work before a cut, at most")
    parser.add_argument("--keep", help="directory that gets what failed")
    parser.add_argument("--driftless", default=os.environ.get("DRIFTLESS", "target/debug/driftless"))
    options = parser.parse_args()
    options.driftless = os.path.abspath(options.driftless)
    disks, failed, seed, tally = [], 0, options.first, Tally()
    began = time.time()
    options.base = tempfile.mkdtemp(prefix="driftless-power-")
    try:
        check_needs(options, options.kind)
        disks += [Disk(options.base, options.kind, f"disk{i}") for i in range(3)]
        while (cuts := sum(tally.cuts.values())) < options.cuts and failed < FAILED_MAX:
            layout = options.layout or sorted(LAYOUTS)[seed % len(LAYOUTS)]
            few = min(CUTS_PER_WORLD, options.cuts - cuts)
            failed += cut_world(options, options.kind, layout, disks, seed, few, tally)
            seed += 1
    except Skip as why:
        print(f"skipped: {why}")
        return SKIPPED
    except KeyboardInterrupt:
        cuts = sum(tally.cuts.values())
    finally:
        for disk in disks:
            disk.drop()
        shutil.rmtree(options.base, ignore_errors=True)
    print(tally.table())
    took = time.time() - began
    print(f"{options.kind}: {cuts} cuts in {seed - options.first} worlds, {failed} failed, {took:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
