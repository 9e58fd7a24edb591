#!/usr/bin/env bash
# Prepares FSD50K, trains on it and prints the summary: scripts/fsd50k.sh DATA_DIR [--section.field value ...]
# DATA_DIR contains FSD50K.dev_audio, FSD50K.eval_audio and FSD50K.ground_truth. Resampled audio and datafiles are
# written to $PSLA_OUT, by default DATA_DIR. Further arguments are passed to psla train. Run it again to resume.
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
