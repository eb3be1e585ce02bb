#!/usr/bin/env python3
"""The benchmark harness with a sync of the other site's file system counted for every peer: what a power cut could take back is not done.

Takes what the harness takes; its directory has to be on the path:

    PYTHONPATH=HARNESS ENGINE_ADAPTER=bench/adapter.py python3 bench/synced.py --peers rsync,tar,engine --net lan --scenarios s1 --dir DISK
"""

import ctypes
import os
import sys
import time

import bench

libc = ctypes.CDLL(None, use_errno=True)
wait = bench.Ctx.wait


def synced(c, done=None):
    t = wait(c, done)
    fd = os.open(c.bdir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        begun = time.monotonic()
        if libc.syncfs(fd):
            raise OSError(ctypes.get_errno(), "syncfs")
        return t + time.monotonic() - begun
    finally:
        os.close(fd)


if __name__ == "__main__":
    bench.Ctx.wait = synced
    sys.exit(bench.main())
