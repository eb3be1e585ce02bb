"""The adapter by which the benchmark harness drives two nodes (see docs/performance.md).

The harness makes two network namespaces and asks for one subclass of its `peers.Engine`. Here two `driftless serve` run, sites
`a` and `b`, over the network; keys and the acquaintance of the sites are made before the clock runs, the volume and its
link while it does. DRIFTLESS_BIN names the program [default: target/release/driftless of this project].
"""

import json
import os
import socket
import subprocess
import time

import verify
from net import IP
from peers import Engine as Base

HERE = os.path.dirname(os.path.abspath(__file__))
BIN = os.environ.get("DRIFTLESS_BIN") or os.path.join(HERE, "..", "target", "release", "driftless")
PORT = 7440
# The name that a volume's directory keeps for itself.
verify.IGNORE.add(".driftless")


class Driftless(Base):
    """Two nodes over TLS, one volume, one link, all changes durable before they are acknowledged."""

    version_cmd = [BIN, "--version"]

    @classmethod
    def missing(cls):
        return [] if os.access(BIN, os.X_OK) else [f"{BIN} (cargo build --release, or set DRIFTLESS_BIN)"]

    # ----- before the clock runs

    def prepare(self, a, b, mode="oneway"):
        super().prepare(a, b, mode)
        self.nodes, self.approved = {}, set()
        # On the file system of the trees: what the index costs there is part of what is measured.
        self.state = {h: f"{self.ctx.run}/{h}-state" for h in "ab"}
        if os.path.exists(self.state["a"]):
            return
        for h in "ab":
            os.mkdir(self.state[h])
        try:
            self._serve()
            token = self._say("a", "site", "invite")
            self._say("b", "site", "join", token)
        finally:
            self._end()

    # ----- while it runs

    def start(self, a, b, mode="oneway"):
        super().start(a, b, mode)
        self._serve()
        if not self._status("a")["volumes"]:
            link = "active-passive" if mode == "oneway" else "active-active"
            # As other peers: who deletes half of a tree is not asked whether that is meant.
            unasked = ["--max-delete", "100%", "--on-rollback", "accept"]
            self._say("a", "volume", "add", "data", self.adir, *unasked)
            self._say("a", "link", "create", "data", "--to", "b", "--mode", link)
            self._say("b", "volume", "add", "data", self.bdir, "--from", "a", *unasked)

    def wait_synced(self, done=None):
        # Who asks all the time takes the processors from who works: never more often than makes a fiftieth of the time waited.
        begun, again = time.monotonic(), 0.0

        def idle():
            nonlocal again
            now = time.monotonic()
            if now < again:
                return False
            well = self._idle()
            if not well:
                again = now + min((now - begun) / 50, 0.1)
            return well

        return self.poll(idle, done, 0.01)

    def stop(self):
        self._end()
        super().stop()

    # ----- helpers

    def _serve(self, hosts="ba"):
        for h in hosts:
            site = getattr(self.ctx, h)
            log = open(f"{self.ctx.run}/{h}.log", "ab")
            argv = [BIN, "serve", "--name", h, "--listen", f"{IP[h]}:{PORT}", "--state", self.state[h], "--admin", "off"]
            self.nodes[h] = site.start(argv, stdout=subprocess.DEVNULL, stderr=log, env={**os.environ, "HOME": self.ctx.run})
        for h in hosts:
            until = time.monotonic() + 60
            while True:
                try:
                    self._status(h)
                    break
                except (OSError, ValueError) as e:
                    if self.nodes[h].poll() is not None or time.monotonic() > until:
                        raise RuntimeError(f"the node of {h} does not answer ({e}): {self._log(h)}")
                    time.sleep(0.005)

    def _end(self):
        for h in "ab":
            if h in self.nodes:
                getattr(self.ctx, h).end(self.nodes.pop(h))

    def _log(self, h):
        with open(f"{self.ctx.run}/{h}.log", errors="replace") as f:
            return f.read()[-400:].strip()

    def _say(self, h, *words):
        """Runs a command of the node, in its namespace and on its account; what it prints."""
        site = getattr(self.ctx, h)
        p = site.start([BIN, *words, "--state", self.state[h]], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        out, err = p.communicate(timeout=120)
        if p.returncode:
            raise RuntimeError(f"driftless {' '.join(words[:2])} at {h}: {err.strip()[-300:]}; {self._log(h)}")
        return out.strip()

    def _status(self, h):
        """What `driftless status --json` prints, asked by the node's own socket: a process each time would cost more
        than what is measured."""
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(60)
            # Through a descriptor, however long the path is.
            at = os.open(self.state[h], os.O_PATH | os.O_DIRECTORY)
            try:
                s.connect(f"/proc/self/fd/{at}/control.sock")
            finally:
                os.close(at)
            s.sendall(b'"status"\n')
            with s.makefile("rb") as f:
                return json.loads(f.readline())["status"]

    def _idle(self):
        """Both have looked at their trees, and the other side holds everything on its disk."""
        well = True
        for h in "ab":
            if self.nodes[h].poll() is not None:
                raise RuntimeError(f"the node of {h} ended: {self._log(h)}")
            volumes = self._status(h)["volumes"]
            if not volumes:
                return False
            v = volumes[0]
            if v["error"]:
                raise RuntimeError(f"{h}: {v['error']}")
            if v["waiting_items"] and v["scanned"] and h not in self.approved:
                # More than half of the tree is gone: the guard of each site asks, and the operator says yes at once.
                self.approved.add(h)
                self._say(h, "volume", "approve", "data")
            well &= v["scanned"] and not v["waiting_items"] and bool(v["links"])
            well &= all(link["state"] == "in-sync" for link in v["links"])
        return well
