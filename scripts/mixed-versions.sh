#!/usr/bin/env bash
# Two sites of different versions: OLD with NEW and NEW with OLD. Each creates, edits, renames and removes; both trees must be the
# same after each step. Then the old site is stopped and goes on as NEW, on the same state.
#
#     scripts/mixed-versions.sh OLD_BINARY NEW_BINARY
#
# Needs GNU find and diff. Exits with 1 and shows both logs if a step fails; prints the steps, and which protocols both speak.
set -euo pipefail
[ $# = 2 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2; }
old=$(realpath "$1") new=$(realpath "$2")
base=$(mktemp -d "${TMPDIR:-/tmp}/mixed-versions.XXXXXX")
declare -A pid binary
patience_s=120

stop() {
  kill -TERM "${pid[$1]}" 2>/dev/null || return 0
  wait "${pid[$1]}" || true
}
finish() {
  local code=$?
  if [ $code != 0 ]; then
    for site in a b; do echo "--- log of $site"; tail -n 30 "$base"/*/"$site"/log || true; done
  fi
  for site in a b; do [ -z "${pid[$site]:-}" ] || stop "$site"; done
  rm -rf "$base"
  exit $code
}
trap finish EXIT

start() { # SITE BINARY
  local home="$base/$round/$1"
  mkdir -p "$home/data"
  binary[$1]=$2
  DRIFTLESS_STATE="$home/state" "$2" serve --name "$1" --listen 127.0.0.1:0 --admin off 2>>"$home/log" >/dev/null &
  pid[$1]=$!
  retry "$1 to answer" at "$1" status --json
}
at() { # SITE ARGS...
  local site=$1
  shift
  DRIFTLESS_STATE="$base/$round/$site/state" "${binary[$site]}" "$@"
}
retry() { # WHAT COMMAND...
  local what=$1 until=$((SECONDS + patience_s))
  shift
  # `status` exits with another code while a site is not connected: that it answers is enough here.
  until "$@" >"$base/said" 2>&1 || grep -q verdict "$base/said"; do
    [ $SECONDS -lt $until ] || { echo "FAILED: $what"; cat "$base/said"; return 1; }
    sleep 0.1
  done
}
list() { # all that is replicated of names, kinds, sizes, modes and times
  (cd "$base/$round/$1/data" && find . -mindepth 1 -name .driftless -prune -o -printf "%P %y %s %m %n %T@ %l\n" 2>/dev/null |
    sed -E 's/^(.* d) [0-9]+ /\1 /' | sort)
}
same() {
  [ "$(list a)" = "$(list b)" ] && diff -r --no-dereference --exclude=.driftless "$base/$round/a/data" "$base/$round/b/data" >/dev/null
}
step() { # WHAT
  local until=$((SECONDS + patience_s))
  until same; do
    [ $SECONDS -lt $until ] || { echo "FAILED: $1"; diff <(list a) <(list b) || true; return 1; }
    sleep 0.2
  done
  echo "  same after: $1"
}

work() { # SITE OTHER
  local d="$base/$round/$1/data"
  mkdir -p "$d/$1/deep/er" "$d/$1/gone"
  for i in $(seq 300); do echo "$1 $i" >"$d/$1/deep/$i"; done
  head -c 8000000 /dev/urandom >"$d/$1/large"
  ln -s deep/1 "$d/$1/link"
  ln "$d/$1/deep/2" "$d/$1/second-name"
  touch "$d/$1/gone/"{1,2,3}
  step "$1 creates"
  echo more >>"$d/$1/deep/1"
  printf 'in the middle' | dd of="$d/$1/large" bs=1 seek=4000000 conv=notrunc status=none
  chmod 600 "$d/$1/deep/3"
  step "$1 edits"
  mv "$d/$1/deep" "$d/$1/renamed"
  mv "$d/$1/large" "$d/$1/renamed/er/larger"
  step "$1 renames"
  rm -r "$d/$1/gone"
  rm "$d/$1/renamed/"{10,11,12}
  step "$1 removes"
  # What the other made is changed here.
  if [ -d "$d/$2/renamed" ]; then
    echo "by $1" >"$d/$2/renamed/1"
    mv "$d/$2/renamed/20" "$d/$2/renamed/twenty"
    rm "$d/$2/renamed/21"
    step "$1 changes what $2 made"
  fi
}

pair() { # NAME BINARY_OF_A BINARY_OF_B
  round=$1
  echo "$1"
  start a "$2"
  start b "$3"
  at a volume add data "$base/$round/a/data" >/dev/null
  local token
  token=$(at a site invite --for data)
  at b site join "$token" --dir data="$base/$round/b/data" >/dev/null
  echo first >"$base/$round/a/data/first"
  step "joining"
  work a b
  work b a
  at a flush data --timeout 2m >/dev/null
  at b flush data --timeout 2m >/dev/null
  echo "  both hold everything (flush at both)"
  local was=a
  [ "${binary[a]}" = "$old" ] || was=b
  stop $was
  echo "while $was was away" >"$base/$round/$([ $was = a ] && echo b || echo a)/data/away"
  start $was "$new"
  step "the old site goes on as the new version"
  stop a
  stop b
  pid=()
}

protocols() { # the least and the greatest that a binary speaks, as it greets over SSH
  (sleep 1) | "$1" agent --stdio --state "$base/greeting" 2>/dev/null | head -n 1 || true
}
echo "old: $("$old" --version), $(protocols "$old"); new: $("$new" --version), $(protocols "$new")"
pair old-invites-new "$old" "$new"
pair new-invites-old "$new" "$old"
echo "all well"
