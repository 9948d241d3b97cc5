#!/usr/bin/env bash
# Tune at half of the rounds, then run the chosen values on fresh seeds: bash run.sh OUT [STUDY]
# STUDY is pendulum or finer, which the README reports, or full.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:?name a folder for the results}
study=${2:-pendulum}
fedpisa tune "$here/$study.toml" --out "$out/$study-tuned"
awk '/^num-server-rounds = /{$3 *= 2} 1' "$out/$study-tuned/best.toml" > "$out/$study.toml"
fedpisa compare "$out/$study.toml" --out "$out/$study"
