#!/usr/bin/env python3
"""What the benchmark harness has no scenario for, between the same two network namespaces, without delay but for `tcp` and `loss`:

    tcp      what one TCP connection needs for the bytes of s1 over the WAN line, between two processes that do nothing else
    tls      a file of 2 GiB, against what one TLS connection moves between two processes that do nothing else, and where one writes it to a file
    wide     a change in a directory of many entries, against one in a directory of 1,000
    rename   of a directory with 50,000 files, until it is there and until both sites say that it is held on disk: the harness walks the tree in between
    image    blocks of 4 KiB in 200 places of a file of 1 GiB, written over as a virtual machine does, and what the disk then has to write: on a file
             system whose files can share blocks (--dir on XFS or btrfs), beside rsync, which makes a new file, and rsync --inplace
    backlog  files that appeared while the other site was down, against a first copy of the same kind: made in all directories in turn, and one
             directory after the other
    loss     s8 over the WAN, on the harness's line and on one that loses nothing, each with two congestion controls
    writers  a program that writes files: alone, while somebody hears of it and does nothing, and with the nodes, in turn
    growth   a first copy of many files of 256 bytes, against one of 100,000, both also by rsync; with 2,000,000 on a disk and --keep this takes twenty minutes

Run as root with the harness on the path, and DRIFTLESS_BIN and ENGINE_ADAPTER as for it:

    PYTHONPATH=HARNESS DRIFTLESS_BIN=target/release/driftless ENGINE_ADAPTER=bench/adapter.py \\
        python3 bench/more.py --dir TMPFS/run tcp tls wide rename backlog loss writers
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time

import bench
import data
import net
import peers
import verify
from net import IP

SERVER = r"""
import socket, ssl, sys
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.minimum_version = ssl.TLSVersion.TLSv1_3
tls.load_cert_chain(sys.argv[1], sys.argv[2])
with socket.create_server((sys.argv[3], 7500)) as listener:
    print("listening", flush=True)
    conn = tls.wrap_socket(listener.accept()[0], server_side=True)
    buffer, got, want = memoryview(bytearray(1 << 18)), 0, int(sys.argv[4])
    file = open(sys.argv[5], "wb", buffering=0) if len(sys.argv) > 5 else None
    while got < want:
        n = conn.recv_into(buffer)
        if n == 0: break
        got += n
        if file: file.write(buffer[:n])
    conn.sendall(b"!")
"""
CLIENT = r"""
import socket, ssl, sys, time
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
conn = tls.wrap_socket(socket.create_connection((sys.argv[1], 7500)))
left, buffer = int(sys.argv[2]), memoryview(bytes(1 << 18))
begun = time.monotonic()
while left > 0:
    n = min(left, len(buffer))
    conn.sendall(buffer[:n])
    left -= n
conn.recv(1)
print(time.monotonic() - begun)
"""
TCP_SERVER = r"""
import socket, sys
with socket.create_server((sys.argv[1], 7500)) as listener:
    print("listening", flush=True)
    conn, buffer = listener.accept()[0], bytearray(1 << 18)
    while conn.recv_into(buffer): pass
    conn.sendall(b"!")
"""
TCP_CLIENT = r"""
import socket, sys, time
conn = socket.socket()
conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, sys.argv[3].encode())
begun = time.monotonic()
conn.connect((sys.argv[1], 7500))
left, buffer = int(sys.argv[2]), memoryview(bytes(1 << 18))
while left > 0:
    n = min(left, len(buffer))
    conn.sendall(buffer[:n])
    left -= n
conn.shutdown(socket.SHUT_WR)
conn.recv(1)
print(time.monotonic() - begun)
"""
# Writes files of 4 KiB by the plainest calls there are, and says how long that took.
WRITER = r"""
import os, sys, time
root, n = sys.argv[1], int(sys.argv[2])
body = os.urandom(4096)
begun = time.monotonic()
for d in range(n // 100):
    os.mkdir(f"{root}/d{d:05}")
    for f in range(100):
        fd = os.open(f"{root}/d{d:05}/f{f:02}", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.write(fd, body)
        os.close(fd)
print(time.monotonic() - begun)
"""
# Asks the system for the same events of a file system as a node, and throws them away.
LISTENER = r"""
import ctypes, os, select, sys
FAN_NONBLOCK, FAN_UNLIMITED_QUEUE, FAN_REPORT_DFID_NAME_TARGET, FAN_MARK_ADD_FILESYSTEM = 0x2, 0x10, 0x1E00, 0x101
# created, deleted, closed after writing, attributes, renamed; of directories too
MASK = 0x100 | 0x200 | 0x8 | 0x4 | 0x10000000 | 0x40000000
libc = ctypes.CDLL(None, use_errno=True)
group = libc.fanotify_init(FAN_NONBLOCK | FAN_UNLIMITED_QUEUE | FAN_REPORT_DFID_NAME_TARGET, 0)
if group < 0 or libc.fanotify_mark(group, FAN_MARK_ADD_FILESYSTEM, ctypes.c_uint64(MASK), -100, sys.argv[1].encode()) < 0:
    sys.exit(os.strerror(ctypes.get_errno()))
print("listening", flush=True)
while True:
    select.select([group], [], [])
    os.read(group, 1 << 18)
"""


def options(doc):
    """Those that the harness wants of who uses it; `prepare` adds the rest."""
    ap = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--cc", help="congestion control (default: the machine's)")
    ap.add_argument("--dir", required=True, help="where the trees live while they are measured")
    ap.add_argument("--keep", action="store_true", help="leave the trees there: removing millions of files takes longer than copying them")
    return ap


def prepare(o):
    # What the harness's own options would be.
    o.ssh_cipher, o.seed, o.limit_s = None, 1, 3600
    net.ensure_wan()
    os.makedirs(o.dir, exist_ok=True)


def context(o, line="lan"):
    return bench.Ctx(peers.ALL["engine"], 1, line, o)


def end(c):
    if getattr(c.peer, "nodes", None):
        c.peer.stop()
    c.close()


def first_copy(o, make):
    """Seconds and processor seconds of a first copy, as in the harness."""
    c = context(o)
    try:
        bench.initial(c, make(c))
        if not c.res["equal"]:
            raise RuntimeError(f"the trees differ: {c.res['diffs']}")
        return c.res["seconds"], c.res["cpu_s"]
    finally:
        end(c)


def warm(c, make):
    """Makes what is copied, and takes memory for the copy before: from a host that gives it on first use it comes at a sixth of the speed."""
    make(c.adir)
    make(c.run + "/warm")
    shutil.rmtree(c.run + "/warm")


def tcp(o):
    size, took, wire = 218_000_000, [], []
    for _ in range(o.runs):
        c = context(o, "wan")
        try:
            server = c.b.start([sys.executable, "-c", TCP_SERVER, IP["b"]], stdout=subprocess.PIPE, text=True)
            server.stdout.readline()
            before = c.wan.bytes()[0]
            client = c.a.start([sys.executable, "-c", TCP_CLIENT, IP["b"], str(size), o.cc or "bbr"], stdout=subprocess.PIPE, text=True)
            took.append(round(float(client.communicate(timeout=600)[0]), 2))
            wire.append(round((c.wan.bytes()[0] - before) / 1e6, 1))
        finally:
            c.close()
    return {"bytes": size, "s": took, "wire_mb": wire}


def tls(o):
    size = 2 << 30
    plain, written, file = [], [], []

    def moved(to_file):
        c = context(o)
        try:
            key, cert = c.run + "/key.pem", c.run + "/cert.pem"
            ask = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=x"]
            subprocess.run([*ask, "-keyout", key, "-out", cert], check=True, stderr=subprocess.DEVNULL)
            to = [c.bdir + "/big"] if to_file else []
            server = c.b.start([sys.executable, "-c", SERVER, cert, key, IP["b"], str(size), *to], stdout=subprocess.PIPE, text=True)
            server.stdout.readline()
            client = c.a.start([sys.executable, "-c", CLIENT, IP["b"], str(size)], stdout=subprocess.PIPE, text=True)
            return round(float(client.communicate(timeout=300)[0]), 2)
        finally:
            c.close()

    for _ in range(o.runs):
        plain.append(moved(False))
        written.append(moved(True))
        file.append(round(first_copy(o, lambda c: warm(c, lambda dir: data.large_file(dir + "/big", size, o.seed)))[0], 2))
    a, w, b = (statistics.median(took) for took in (plain, written, file))
    return {"plain_s": plain, "written_s": written, "file_s": file, "share_of_plain": round(a / b, 2), "share_of_written": round(w / b, 2)}


def wide(o):
    out = {}
    for entries in (1_000, o.entries):
        c = context(o)
        try:
            os.mkdir(c.adir + "/wide")
            for n in range(entries):
                os.close(os.open(f"{c.adir}/wide/f{n:07}", os.O_CREAT | os.O_WRONLY))
            c.seeded()
            time.sleep(5)
            c.mark()
            rng, took = random.Random(o.seed), []
            for k in range(40):
                # A file that is there is written to; one that is new appears.
                name = f"wide/f{rng.randrange(entries):07}" if k % 2 else f"wide/new{k:03}"
                body = rng.randbytes(1024 + k)
                begun = time.monotonic()
                with open(f"{c.adir}/{name}", "wb") as f:
                    f.write(body)
                while not (os.path.exists(f"{c.bdir}/{name}") and os.stat(f"{c.bdir}/{name}").st_size == len(body)):
                    if time.monotonic() > begun + 60:
                        raise TimeoutError("a write did not arrive within 60 s")
                    time.sleep(0.001)
                took.append((time.monotonic() - begun) * 1e3)
                time.sleep(rng.uniform(0.05, 0.4))
            c.account()
            out[str(entries)] = {
                "median_ms": round(statistics.median(took), 1), "max_ms": round(max(took), 1),
                "cpu_ms_each": round(c.res["cpu_s"] * 1000 / len(took), 1),
            }
        finally:
            end(c)
    return out


def rename(o):
    c = context(o)
    try:
        data.small_files(c.adir + "/old", 50_000, 4096, 500, o.seed)
        c.seeded()
        there, held, wire, cpu = [], [], [], []
        names = ["old", "new"]
        for _ in range(o.runs):
            time.sleep(2)
            c.mark()
            begun = time.monotonic()
            os.rename(f"{c.adir}/{names[0]}", f"{c.adir}/{names[1]}")
            while os.path.exists(f"{c.bdir}/{names[0]}") or not os.path.exists(f"{c.bdir}/{names[1]}"):
                if time.monotonic() > begun + 60:
                    raise TimeoutError("a rename did not arrive within 60 s")
                time.sleep(0.001)
            there.append((time.monotonic() - begun) * 1e3)
            # What is there has been sent, so that the other site's receipt is waited for from then on.
            while not c.peer._idle():
                time.sleep(0.001)
            held.append((time.monotonic() - begun) * 1e3)
            c.account()
            wire.append(c.res["wire"])
            cpu.append(c.res["cpu_s"] * 1e3)
            names.reverse()
        c.check()
        if not c.res["equal"]:
            raise RuntimeError(f"the trees differ: {c.res['diffs']}")
        shown = lambda values: [round(v, 1) for v in values]
        return {"there_ms": shown(there), "held_ms": shown(held), "median_held_ms": round(statistics.median(held), 1), "wire_bytes": wire, "cpu_ms": shown(cpu)}
    finally:
        end(c)


class RsyncInPlace(peers.Rsync):
    """The same, writing over the file that is there: a reader sees it half done, and so does a power cut."""
    name = "rsync --inplace"
    extra = ("--inplace", "--no-whole-file")


def written(path):
    """Bytes written so far to the disk under a path; 0 for memory."""
    dev = os.stat(path).st_dev
    try:
        with open(f"/sys/dev/block/{os.major(dev)}:{os.minor(dev)}/stat") as f:
            return int(f.read().split()[6]) * 512
    except FileNotFoundError:
        return 0


def image(o):
    size, block, out = 1 << 30, 4096, {}
    for who in (peers.Rsync, RsyncInPlace, peers.ALL["engine"]):
        c = bench.Ctx(who, 1, "lan", o)
        rng, rows = random.Random(o.seed), []
        try:
            data.large_file(c.adir + "/image", size, o.seed)
            c.seeded()
            for _ in range(o.runs):
                c.flush()
                before = written(c.run)
                c.mark()
                with open(c.adir + "/image", "r+b") as f:
                    for _ in range(200):
                        f.seek(rng.randrange(size // block) * block)
                        f.write(rng.randbytes(block))
                c.t0 = time.monotonic()
                c.took(c.wait())
                c.account()
                c.flush()
                rows.append({key: c.res[key] for key in ("seconds", "cpu_s", "wire")} | {"written_mb": round((written(c.run) - before) / 1e6, 1)})
                c.check()
                if not c.res["equal"]:
                    raise RuntimeError(f"the trees differ: {c.res['diffs']}")
            out[who.name] = {key: [row[key] for row in rows] for key in rows[0]}
        finally:
            if who.continuous:
                c.peer.stop()
            c.close()
    return out


def backlog(o):
    seconds, _ = first_copy(o, lambda c: data.small_files(c.adir, 50_000, 4096, 500, o.seed))
    out = {"files": o.backlog, "first_copy_files_per_s": round(50_000 / seconds)}
    for order, make in (("in_turn", data.small_files), ("by_directory", by_directory)):
        out[order] = drained(o, make)
        out[order]["share"] = round(out[order]["files_per_s"] / (50_000 / seconds), 2)
        print(json.dumps(out), file=sys.stderr, flush=True)
    return out


def by_directory(root, n, size, dirs, seed):
    """As the harness's small files, but each directory is made and filled before the next."""
    rng = random.Random(seed)
    for d in range(dirs):
        os.makedirs(f"{root}/d{d:04}")
        for i in range(n // dirs):
            with open(f"{root}/d{d:04}/f{i:06}", "wb") as f:
                f.write(rng.randbytes(size))


def drained(o, make):
    files, per_dir = o.backlog, 100
    c = context(o)
    try:
        data.small_files(c.adir + "/kept", 1000, 4096, 10, o.seed)
        c.seeded()
        c.b.end(c.peer.nodes["b"])
        before = c.peer._status("a")["volumes"][0]["recorded"]
        made = time.monotonic()
        make(c.adir + "/new", files, 4096, files // per_dir, o.seed)
        made = time.monotonic() - made
        want = before + files + files // per_dir
        until = time.monotonic() + 900
        while (seen := c.peer._status("a")["volumes"][0]["recorded"]) < want:
            if time.monotonic() > until:
                raise TimeoutError(f"{seen - before} of {want - before} changes were recorded")
            time.sleep(0.2)
        c.flush()
        c.mark()
        c.peer._serve("b")
        t = c.wait(c.done(lambda: os.path.isdir(c.bdir + "/new")))
        c.took(t)
        c.account()
        c.check()
        if not c.res["equal"]:
            raise RuntimeError(f"the trees differ: {c.res['diffs']}")
        return {
            "made_s": round(made, 1), "drained_s": c.res["seconds"], "cpu_s": c.res["cpu_s"], "rss_mb": c.res["rss_mb"],
            "files_per_s": round(files / c.res["seconds"]),
        }
    finally:
        end(c)


def loss(o):
    line, out = bench.NETS["wan"], {}
    share = line[line.index("--loss") + 1]
    for lost, congestion in ((share, "bbr"), ("0", "bbr"), (share, "cubic"), ("0", "cubic")):
        bench.NETS["wan"] = [lost if before == "--loss" else word for before, word in zip(["", *line], line)]
        os.environ["DRIFTLESS_CONGESTION"] = congestion
        c = context(o, "wan")
        try:
            bench.s8(c)
            out[f"{lost} %, {congestion}"] = {key: c.res[f"lat_{key}"] for key in ("p50_ms", "p99_ms", "min_ms")}
        finally:
            end(c)
    del os.environ["DRIFTLESS_CONGESTION"]
    bench.NETS["wan"] = line
    return out


def writers(o):
    files = 40_000
    took = {"without": [], "listener": [], "with": []}
    for run in range(o.runs):
        c = context(o)
        # Two sites have a file system each. On one of both, the other site's watcher would hear the program as well.
        own = lambda: subprocess.run(["mount", "-t", "tmpfs", "tmpfs", c.bdir], check=True)
        try:
            own()
            data.small_files(c.adir + "/kept", 1000, 4096, 10, o.seed)
            for which in ("without", "listener", "with") if run % 2 else ("with", "listener", "without"):
                root = c.adir + "/app" if which == "with" else f"{c.run}/{which}"
                if which == "with":
                    c.seeded()
                if which == "listener":
                    listener = c.a.start([sys.executable, "-c", LISTENER, c.run], stdout=subprocess.PIPE, text=True)
                    if not listener.stdout.readline():
                        raise RuntimeError("the system gives no events of a file system")
                os.mkdir(root)
                p = subprocess.run([sys.executable, "-c", WRITER, root, str(files)], check=True, capture_output=True, text=True)
                took[which].append(round(float(p.stdout), 3))
                if which == "listener":
                    c.a.end(listener)
                if which == "with":
                    c.wait()
                    d = verify.compare(c.adir, c.bdir)
                    if not verify.equal(d):
                        raise RuntimeError(f"the trees differ: {d}")
                    c.peer.stop()
                    subprocess.run(["umount", c.bdir], check=True)
                    own()
        finally:
            subprocess.run(["umount", c.bdir])
            end(c)
    without, listener, both = (statistics.median(took[which]) for which in took)
    return {
        "files": files, "without_s": took["without"], "listener_s": took["listener"], "with_s": took["with"],
        "speed": round(without / both, 2), "speed_with_listener": round(without / listener, 2),
    }


class Tenths(threading.Thread):
    """Processor time of both sites for each tenth of the files, by the inodes that appear; nobody else may make any there."""

    def __init__(self, c, files):
        super().__init__(daemon=True)
        self.c, self.step, self.on, self.us = c, files / 10, True, []

    def inodes(self):
        v = os.statvfs(self.c.run)
        return v.f_files - v.f_ffree

    def run(self):
        cpu = lambda: self.c.a.cpu() + self.c.b.cpu()
        first, seen, spent = self.inodes(), 0, cpu()
        while self.on:
            time.sleep(0.1)
            new = self.inodes() - first
            if new - seen >= self.step:
                now = cpu()
                self.us.append(round((now - spent) * 1e6 / (new - seen), 1))
                seen, spent = new, now


def growth(o):
    """The trees are compared by names, sizes and times, and strictly in a hundredth of the directories."""
    out = {}
    for files in (100_000, o.growth):
        kept = f"{o.dir}/growth-{files}"
        dirs = data.small_files(kept, files, 256, files // 400, o.seed) and files // 400
        for who in ("rsync", "engine"):
            c = bench.Ctx(peers.ALL[who], 1, "lan", o)
            try:
                os.rmdir(c.adir)
                os.rename(kept, c.adir)
                c.prepare()
                c.flush()
                done = c.done()
                # As in the harness: the start of who goes on counts, that of sshd does not.
                if not c.peer.continuous:
                    c.start()
                c.mark()
                tenths = Tenths(c, files)
                tenths.start()
                if c.peer.continuous:
                    c.start()
                t = c.wait(done)
                c.took(t)
                c.account()
                tenths.on = False
                tenths.join()
                for d in range(0, dirs, 100):
                    diffs = verify.compare(f"{c.adir}/d{d:04}", f"{c.bdir}/d{d:04}")
                    if not verify.equal(diffs):
                        raise RuntimeError(f"the trees differ in d{d:04}: {diffs}")
                out.setdefault(who, {})[str(files)] = {
                    "s": c.res["seconds"], "cpu_s": c.res["cpu_s"], "rss_mb": c.res["rss_mb"], "us_a_file": round(c.res["seconds"] * 1e6 / files, 1),
                    "cpu_us_a_file": round(c.res["cpu_s"] * 1e6 / files, 1), "cpu_us_a_file_by_tenths": tenths.us,
                }
                print(json.dumps({who: out[who]}), file=sys.stderr, flush=True)
            finally:
                if who == "engine":
                    c.peer.stop()
                if not os.path.exists(kept):
                    os.rename(c.adir, kept)
                c.close()
        if not o.keep:
            shutil.rmtree(kept)
    return out


def main():
    ap = options(__doc__)
    ap.add_argument("what", nargs="+", choices=["tcp", "tls", "wide", "rename", "image", "backlog", "loss", "writers", "growth"])
    ap.add_argument("--runs", type=int, default=5, help="of tcp, tls, rename, image and writers; medians of these count")
    ap.add_argument("--entries", type=int, default=1_000_000, help="of the wide directory")
    ap.add_argument("--backlog", type=int, default=1_000_000, help="files that appear meanwhile")
    ap.add_argument("--growth", type=int, default=2_000_000, help="files of the largest first copy")
    o = ap.parse_args()
    prepare(o)
    for what in o.what:
        print(json.dumps({what: globals()[what](o)}), flush=True)


if __name__ == "__main__":
    main()
