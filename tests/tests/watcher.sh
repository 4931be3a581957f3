#!/bin/sh
# Stands for `sidescope observe` where only the demo around it is tested: takes its options, waits, writes, reports.
[ "$1" = observe ] && [ "$2" = --inventory ] && [ -s "$3" ] && [ "$4" = --out ] && [ "$6" = --cgroup ] && [ -d "$7" ] || exit 2
[ -z "$FAIL" ] || { echo "it does not work" >&2; exit 1; }
write() {
    mkdir -p "$OUT/sidecars/default"
    echo '{}' >"$OUT/graph.json"
    echo 'kind: Sidecar' >"$OUT/sidecars/default/reviews.yaml"
    echo "the report"
    exit 0
}
OUT=$5
trap write INT TERM
echo "watching $7" >&2
while :; do
    sleep 0.1
done
