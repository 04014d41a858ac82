#!/bin/sh
# "I have an idea for attention and want to know whether it is worth something."
set -e
cat > my_attention.py <<'END'
import gen_jax
from gen_jax.nn import attention


def sharp(query, keyvalue, mask, *, scale: float = 1.0):
  """softmax(scale q k^T / sqrt(Dh)) v."""
  return attention.attend(scale * query, keyvalue, mask)


gen_jax.register("attention_impl", sharp)
END

for seed in 0 1; do
  gen-jax train --config lm/pydoc:smoke --workdir "runs/usual$seed" --config.seed=$seed \
    --config.train.num_steps=30
  gen-jax train --config lm/pydoc:smoke --workdir "runs/sharp$seed" --config.seed=$seed \
    --config.train.num_steps=30 --config.imports=my_attention.py \
    --config.task.model.attention_impl=sharp --config.task.model.attention_impl.scale=2
done
gen-jax compare runs/usual0,runs/usual1 runs/sharp0,runs/sharp1
gen-jax sample --workdir runs/sharp0 --prompt "The " --max_tokens 20
