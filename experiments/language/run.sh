#!/usr/bin/env bash
# Tune at half of the rounds, then run the chosen values on fresh seeds: bash run.sh OUT [STUDY]
# STUDY is roles, which the README reports, or full.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:?name a folder for the results}
study=${2:-roles}
bash "$here/../tune_then_run.sh" "$here/$study.toml" "$out" --jobs 2
