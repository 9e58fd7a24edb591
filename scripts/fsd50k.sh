#!/usr/bin/env bash
# FSD50K from recordings to summary: scripts/fsd50k.sh DATA_DIR [--section.field value ...]
# DATA_DIR holds FSD50K.dev_audio, FSD50K.eval_audio and FSD50K.ground_truth. Resampled audio and datafiles go beside
# them, or to $PSLA_OUT where DATA_DIR cannot be written. Everything after DATA_DIR goes to psla train. Run it again to go on.
set -euo pipefail

if [ $# -lt 1 ] || [ "$1" = "-h" ] || [ "$1" = "--help" ]; then
    sed -n '2,4s/^# //p' "$0"
    [ $# -ge 1 ] && exit 0 || exit 2
fi

data=$1
shift
out=${PSLA_OUT:-$data}
here=$(cd "$(dirname "$0")" && pwd)

psla prepare fsd50k "$data" --out "$out"
psla train "$here/../configs/fsd50k.py" \
    --data.train "$out/datafiles/fsd50k_tr_full.json" \
    --data.validation "$out/datafiles/fsd50k_val_full.json" \
    --data.evaluation "$out/datafiles/fsd50k_eval_full.json" \
    --data.labels "$out/datafiles/class_labels_indices.csv" \
    "$@"
