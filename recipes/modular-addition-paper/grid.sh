#!/usr/bin/env bash
# The horizon x noise grid of the paper (its Fig. 4): 25 comparisons, each resumable. About an hour a run on one GPU.
set -euo pipefail
for length in 3 9 15 23 31; do
  for eta in 0 0.05 0.1 0.15 0.2; do
    understudy compare recipes/modular-addition-paper --resume \
      --set task.length="$length" --set expert.noise.eta="$eta" \
      --out "runs/modular-addition-paper/m$length-eta$eta" "$@"
  done
done
