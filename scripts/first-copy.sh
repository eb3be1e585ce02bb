#!/usr/bin/env bash
# First copy of 50,000 files of 4 KiB, `rsync -a` and `driftless sync --once` in turn on the same disk.
#
#     cargo build --release && scripts/first-copy.sh [DIRECTORY] [ROUNDS]
#
# DIRECTORY (default: a new one below $TMPDIR) says which disk. Needs rsync, python3 and GNU time. Ours ends when
# everything is durable; rsync leaves that to the system. Set DRIFTLESS to try another binary.
set -euo pipefail
driftless=$(realpath "${DRIFTLESS:-target/release/driftless}")
dir=$(mktemp -d "${1:-${TMPDIR:-/tmp}}/first-copy.XXXXXX")
rounds=${2:-3}
trap 'rm -rf "$dir"' EXIT

python3 - "$dir/from" <<'PY'
import os, sys
for d in range(100):
    path = f"{sys.argv[1]}/{d:03}"
    os.makedirs(path)
    for f in range(500):
        with open(f"{path}/{f:03}", "wb") as file:
            file.write(os.urandom(4096))
PY
for round in $(seq "$rounds"); do
  sync
  command time -f "rsync      %e s  (user %U, system %S)" rsync -a "$dir/from/" "$dir/rsync-$round/"
  sync
  mkdir "$dir/ours-$round"
  command time -f "driftless  %e s  (user %U, system %S), %M KiB" \
    "$driftless" sync --once --state "$dir/state-$round" "$dir/from" "$dir/ours-$round" 2>"$dir/out" >/dev/null || cat "$dir/out"
  tail -1 "$dir/out"
  rm -rf "$dir/from/.driftless"
done
