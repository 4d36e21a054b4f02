#!/usr/bin/env bash
# Finetunes DeiT III small on photographs of your own, and shows how good the model is.
#
#     bash examples/finetune_own_images.sh PHOTOS OUT
#
# PHOTOS holds a folder of images for each class: PHOTOS/cat/1.jpg, PHOTOS/dog/2.jpg, ... A tenth of each class is held
# out of training, and the scores are those of the images held out. The published weights are downloaded once.
set -euo pipefail
photos=$1
out=$2

# Every image is read and decoded before the training, and what cannot be used is named.
deit-fast data check "$photos"

# Interrupted, the same command goes on from its last checkpoint.
deit-fast train finetune_small --init deit3_small_patch16@224:21k --data "$photos" --out "$out"

# Top-1 with its 95 % confidence interval. --report adds accuracy per class and the confusion matrix.
deit-fast evaluate "$out" --report "$out/evaluation"

# OUT/report.html: curves, confusions, the most confident mistakes, and what the model looks at.
deit-fast report "$out"

# The classes of any image, and a folder that timm.create_model("local-dir:...") loads.
deit-fast predict "$out" "$photos" --top 3 --csv > "$out/predictions.csv"
deit-fast convert "$out" "$out/timm"
