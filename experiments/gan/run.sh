#!/usr/bin/env bash
# Tune at half of the rounds, then run the chosen values on fresh seeds: bash run.sh OUT [STUDY]
# STUDY is digits, finer or again, which the README reports, or full; again tunes nothing. FEDPISA_DATA is an absolute
# path.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:?name a folder for the results}
study=${2:-digits}
if [ "$study" = again ]; then
    exec fedpisa compare "$here/again.toml" --out "$out/again"
fi
fedpisa tune "$here/$study.toml" --out "$out/$study-tuned"
awk '/^num-server-rounds = /{$3 *= 2} 1' "$out/$study-tuned/best.toml" > "$out/$study.toml"
fedpisa compare "$out/$study.toml" --out "$out/$study"
