#!/usr/bin/env bash
# 两张卡训练同一个适配器。per_device_train_batch_size 和 gradient_accumulation_steps 说的是每张卡，
# 这里把累积步数减半，每步仍是教程的 8 条样本。更多的卡：GPUS=4 examples/two-gpus.sh ...
#
# One adapter on two GPUs. Batch size and accumulation are those of each GPU; with half the accumulation, a step has the
# tutorial's 8 samples as before. For more GPUs: GPUS=4 examples/two-gpus.sh ...
#
#   examples/two-gpus.sh model.path=./chatglm3-6b data.path=train.json
set -euo pipefail
cd "$(dirname "$0")/.."

accumulation=train.gradient_accumulation_steps=1
for setting in "$@"; do
  case $setting in train.gradient_accumulation_steps=*) accumulation= ;; esac   # 命令行写了就用命令行的 / one given wins
done

exec torchrun --standalone --nproc_per_node="${GPUS:-2}" -m glmtune.cli train examples/chatglm3-6b.yaml \
  ${accumulation:+"$accumulation"} "$@"
