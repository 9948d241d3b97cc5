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
    bash "$here/../tune_then_run.sh" "$here/$study.toml" .
done
