"""gen_jax: decoder-only transformers and text-conditioned diffusion, one trainer."""

import os

__version__ = "0.1.0"

# On CPUs XLA hands convolutions to YNNPACK, whose gradient of the kernel takes two to
# five times as long as Eigen's (experiments/benchmarks). XLA reads this when the first
# program is compiled; other platforms pass over it, and a choice already made stays.
_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
  os.environ["XLA_FLAGS"] = (
    f"{_FLAG}=-individual_convolution {os.environ.get('XLA_FLAGS', '')}".strip()
  )
