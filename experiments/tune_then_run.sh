#!/usr/bin/env bash
# Tune at half of the rounds, then run the chosen values on fresh seeds: bash tune_then_run.sh STUDY.toml OUT [OPTION...]
# The options are passed to both commands.
set -euo pipefail
name=$(basename "$1" .toml)
out=${2:?name a folder for the results}
fedpisa tune "$1" --out "$out/$name-tuned" "${@:3}"
awk '/^num-server-rounds = /{$3 *= 2} 1' "$out/$name-tuned/best.toml" > "$out/$name.toml"
fedpisa compare "$out/$name.toml" --out "$out/$name" "${@:3}"
