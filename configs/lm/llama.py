"""LLaMA 1 to 3.2 and TinyLlama: shapes as released, training as published.

LLaMA (Touvron et al. 2023, arXiv:2302.13971, table 2): AdamW with beta 0.9 and 0.95,
weight decay 0.1, clipping at 1, warm-up 2,000 steps, cosine to 10 %, 4 million tokens a
step. LLaMA-2 (arXiv:2307.09288, section 2.2): the same with 2 trillion tokens. Llama 3
(Grattafiori et al. 2024, arXiv:2407.21783, table 3) prints peak learning rates 3e-4,
1.5e-4 and 8e-5 for 8B, 70B and 405B, and for 405B a warm-up of 8,000 steps and 15.6
trillion tokens; the rest of its schedules is not published and is LLaMA's here. 3.2 was
pruned and distilled: its shapes are for loading weights, not for training. TinyLlama
(Zhang et al. 2024, arXiv:2401.02385): 4e-4 to 4e-5, 2 million tokens a step, 3 trillion
tokens.

The text is C4: the papers' mixtures are not public. Not yet run here at full size;
parameter counts are exact.

    gen-jax train --config configs/lm/llama.py:7b --workdir runs/llama --dry_run
"""

import ml_collections

from configs import common

_LLAMA3 = {
  "vocab_size": 128256,
  "norm": {"name": "rms_norm", "eps": 1e-5},
  "rotary": {"name": "rotary", "base": 5e5},
}


def _longer(factor: float) -> dict:
  """LLaMA 3.1's stretched frequencies, and a context of 131,072."""
  scaling = {"name": "llama3", "factor": factor}
  rotary = {"name": "rotary", "base": 5e5, "scaling": scaling}
  return {**_LLAMA3, "rotary": rotary, "max_length": 131072}


_EPS = {"norm": {"name": "rms_norm", "eps": 1e-5}}
_TIED = {"tied_head": True}
# layers, width, heads, key-value heads, feed-forward width; length of a sequence, and
# how many a step; peak learning rate, tokens in all; what differs from LLaMA 1.
SIZES = {
  "7b": (32, 4096, 32, 32, 11008, 2048, 2048, 3e-4, 1.0e12, {}),
  "13b": (40, 5120, 40, 40, 13824, 2048, 2048, 3e-4, 1.0e12, {}),
  "33b": (60, 6656, 52, 52, 17920, 2048, 2048, 1.5e-4, 1.4e12, {}),
  "65b": (80, 8192, 64, 64, 22016, 2048, 2048, 1.5e-4, 1.4e12, {}),
  "2-70b": (80, 8192, 64, 8, 28672, 4096, 1024, 1.5e-4, 2.0e12, _EPS),
  "3-8b": (32, 4096, 32, 8, 14336, 8192, 512, 3e-4, 15e12, _LLAMA3),
  "3-70b": (80, 8192, 64, 8, 28672, 8192, 512, 1.5e-4, 15e12, _LLAMA3),
  "3.1-405b": (126, 16384, 128, 8, 53248, 8192, 2048, 8e-5, 15.6e12, _longer(8.0)),
  "3.2-1b": (16, 2048, 32, 8, 8192, 8192, 512, 3e-4, 9e12, _longer(32.0) | _TIED),
  "3.2-3b": (28, 3072, 24, 8, 8192, 8192, 512, 3e-4, 9e12, _longer(32.0) | _TIED),
  "tinyllama": (22, 2048, 32, 4, 5632, 2048, 1024, 4e-4, 3e12, _EPS),
}
VARIANTS = tuple(SIZES)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """`:7b` to `:tinyllama`, each also with `,smoke`."""
  size, smoke = common.parse_arg(arg, VARIANTS)
  *shape, length, batch_size, peak, tokens, differs = SIZES[size]
  names = ("num_layers", "width", "num_heads", "num_kv_heads", "mlp_width")
  config = common.language_model(
    {
      "vocab_size": 32000,
      "max_length": length,
      **dict(zip(names, shape, strict=True)),
      "norm": {"name": "rms_norm"},
      "mlp": {"name": "gated_mlp"},
      "position": None,
      "rotary": {"name": "rotary"},
      "use_bias": False,
      "tied_head": False,
      "scan_layers": True,
      "remat": "dots",
      "dtype": "bfloat16",
      **differs,
    },
    data={
      "source": {"name": "tfds_text", "dataset": "c4/en:3.0.1"},
      "tokenizer": {"name": "file", "path": "tokenizer.json"},
      "length": length,
      "batch_size": batch_size,
    },
    optimizer={
      "learning_rate": {
        "peak": peak,
        "warmup_steps": 8000 if size == "3.1-405b" else 2000,
      }
    },
    train={
      "num_steps": round(tokens / (batch_size * length)),
      "log_every": 100,
      "save_every": 1000,
    },
    evaluators={"validation": {"name": "loss", "every": 1000, "max_batches": 20}},
    mesh={"data": 1, "fsdp": -1},
  )
  return common.smoke(config) if smoke else config
