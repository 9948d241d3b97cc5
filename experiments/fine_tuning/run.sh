#!/usr/bin/env bash
# Pretrain; tune at half of the rounds; run the chosen values on fresh seeds: bash run.sh OUT [STUDY...]
# The studies are all-weights, lora and finer, which the README reports, full-all-weights and full-lora. FEDPISA_DATA is
# an absolute path.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "${1:?name a folder for the results}"
cd "$1"
shift
[ -e pretrained ] || python "$here/pretrain.py" .
[ $# -gt 0 ] || set -- all-weights lora
for study in "$@"; do
    fedpisa tune "$here/$study.toml" --out "$study-tuned"
    awk '/^num-server-rounds = /{$3 *= 2} 1' "$study-tuned/best.toml" > "$study.toml"
    fedpisa compare "$study.toml" --out "$study"
done
