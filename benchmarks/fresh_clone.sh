#!/usr/bin/env bash
# Seconds from a fresh clone to a serving port, and the service's memory then: bash benchmarks/fresh_clone.sh [RESULT.json]
# Includes making the virtual environment and installing; downloads too, unless pip has them cached.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=$(mktemp -d)
trap 'kill $(pgrep -f "service --bundle build/fresh-demo") 2>/dev/null || true; rm -rf "$folder"' EXIT
git clone -q "$repository" "$folder/lacuna"
cd "$folder/lacuna"
begin=$(date +%s.%N)
make demo ARGS="--out build/fresh-demo" LACUNA_PORT=8793 > make.log 2>&1 &
until curl -sf http://127.0.0.1:8793/health/ready > /dev/null; do
  kill -0 $! 2>/dev/null || { tail -n 5 make.log >&2; exit 1; }
  sleep 0.2
done
seconds=$(echo "$(date +%s.%N) - $begin" | bc)
pid=$(pgrep -f "service --bundle build/fresh-demo" | head -n 1)
kilobytes() { awk -v key="$1:" '$1 == key { print $2 }' "/proc/$pid/status"; }
result=$(printf '{"what": "make demo in a fresh clone, to a serving port", "synthetic": true, "cores": %d, "seconds": %.1f, "memory_mb": {"resident": %d, "peak": %d}}' \
  "$(nproc)" "$seconds" "$(($(kilobytes VmRSS) / 1024))" "$(($(kilobytes VmHWM) / 1024))")
echo "$result"
if [ $# -gt 0 ]; then echo "$result" > "$repository/$1"; fi
