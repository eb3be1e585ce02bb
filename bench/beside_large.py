#!/usr/bin/env python3
"""How long a write of 1 KiB takes to the other site over an emulated line: on an idle one, and beside a large file that is being sent.

Run as root with the benchmark harness on the path, and DRIFTLESS_BIN and ENGINE_ADAPTER as for it:

    PYTHONPATH=HARNESS DRIFTLESS_BIN=target/release/driftless ENGINE_ADAPTER=bench/adapter.py \\
        python3 bench/beside_large.py --wan "--delay-ms 50 --loss 0.1 --rate-mbit 200" --dir TMPFS/run
"""

import json
import os
import random
import time

import bench
import data
import more


def one_write(c, name, body):
    """From before the write until the other site shows the whole file, ms."""
    src, dst = f"{c.adir}/lat/{name}", f"{c.bdir}/lat/{name}"
    t0 = time.monotonic()
    with open(src, "wb") as f:
        f.write(body)
    while True:
        try:
            if os.stat(dst).st_size == len(body):
                return (time.monotonic() - t0) * 1e3
        except FileNotFoundError:
            pass
        if time.monotonic() > t0 + 60:
            raise TimeoutError("a write did not arrive within 60 s")
        time.sleep(0.001)


def writes(c, tag, n, go=lambda: True):
    """Up to so many, while `go` holds."""
    rng, took = random.Random(3), []
    while len(took) < n and go():
        took.append(one_write(c, f"{tag}{len(took):04}", rng.randbytes(1024)))
        # Not at the pace of anything that ticks.
        time.sleep(rng.uniform(0.05, 0.6))
    took.sort()
    at = lambda q: round(took[min(len(took) - 1, int(q * len(took)))], 1)  # noqa: E731
    return {"n": len(took), "p50_ms": at(0.5), "p90_ms": at(0.9), "p99_ms": at(0.99), "min_ms": at(0)}


def measure(c, o):
    data.small_files(c.adir, 1000, 1024, 20, c.opts.seed)
    os.mkdir(c.adir + "/lat")
    c.seeded()
    data.large_file(c.run + "/large", int(o.gib * (1 << 30)), c.opts.seed)
    time.sleep(3)
    print(json.dumps({"line": o.wan, "idle": writes(c, "idle", o.n)}), flush=True)
    before = c.wan.bytes()[0]
    os.rename(c.run + "/large", c.adir + "/large")
    while c.wan.bytes()[0] - before < 30e6:
        time.sleep(0.05)
    before, t0 = c.wan.bytes()[0], time.monotonic()
    under_way = lambda: not os.path.exists(c.bdir + "/large")  # noqa: E731
    beside = writes(c, "beside", o.n, under_way)
    mbit = (c.wan.bytes()[0] - before) / (time.monotonic() - t0) * 8 / 1e6
    print(json.dumps({"line": o.wan, "beside": beside, "mbit": round(mbit), "under_way_still": under_way()}), flush=True)


def main():
    ap = more.options(__doc__)
    ap.add_argument("--wan", default="--delay-ms 50 --loss 0.1 --rate-mbit 200", help="options of the emulated line")
    ap.add_argument("--gib", type=float, default=1, help="length of the large file")
    ap.add_argument("--n", type=int, default=20, help="writes in each case")
    o = ap.parse_args()
    bench.NETS["line"] = o.wan.split()
    more.prepare(o)
    c = more.context(o, "line")
    try:
        measure(c, o)
    finally:
        more.end(c)


if __name__ == "__main__":
    main()
