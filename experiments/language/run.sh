#!/usr/bin/env bash
# Tune at half of the rounds, then run the chosen values on fresh seeds: bash run.sh OUT
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:?name a folder for the results}
fedpisa tune "$here/roles.toml" --out "$out/tuned" --jobs 2
sed 's/num-server-rounds = 75/num-server-rounds = 150/' "$out/tuned/best.toml" > "$out/roles.toml"
fedpisa compare "$out/roles.toml" --out "$out/runs" --jobs 2
