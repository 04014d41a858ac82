#!/bin/sh
# "I have a budget for a pod and want to know what it buys, and how to start."
set -e
gen-jax list lm/gpt2
gen-jax plan --config lm/gpt2:124m --topology v5litepod-16 --quick --mfu 0.4 \
  --tokens 1e10 --config.mesh.data=1 --config.mesh.fsdp=16 \
  --config.train.num_microbatches=3 # as the error without it says
gen-jax train --config lm/gpt2:124m,smoke --workdir runs/small # the same code, in seconds
gen-jax launch --dry_run --on tpu-vm --name pod --zone us-west4-a \
  --option=--accelerator-type=v5litepod-16 --option=--version=v2-alpha-tpuv5-lite \
  -- train --config lm/gpt2:124m --workdir gs://bucket/gpt2 --config.mesh.fsdp=16 \
  --config.train.num_microbatches=3
