"""GPT-3 from scratch: Brown et al. 2020 (arXiv:2005.14165), table 2.1 and appendix B.

Adam with beta 0.9 and 0.95, eps 1e-8, clipping at 1, weight decay 0.1, warm-up over 375
million tokens, cosine to 10 % over 260 billion tokens, 300 billion in all, contexts of
2,048. Differences: batches have their full size from the start (the paper ramps them up
over the first billions of tokens), all layers attend densely (the paper alternates with
locally banded ones), and the text is C4 (the paper's is not public). Not yet run here
at full size; parameter counts are those of the shapes below.

Two rows of the printed table are inconsistent. XL has 24 heads of 128 at width 2,048;
here it has 16. 13B has width 5,140, which is not 40 heads of 128; it is kept as
printed, with attention of width 5,120.

    gen-jax train --config configs/lm/gpt3.py:small --workdir runs/gpt3 --dry_run
"""

import ml_collections

from configs import common

# layers, width, heads, head size, sequences a step, peak learning rate.
SIZES = {
  "small": (12, 768, 12, 64, 256, 6e-4),
  "medium": (24, 1024, 16, 64, 256, 3e-4),
  "large": (24, 1536, 16, 96, 256, 2.5e-4),
  "xl": (24, 2048, 16, 128, 512, 2e-4),
  "2.7b": (32, 2560, 32, 80, 512, 1.6e-4),
  "6.7b": (32, 4096, 32, 128, 1024, 1.2e-4),
  "13b": (40, 5140, 40, 128, 1024, 1e-4),
  "175b": (96, 12288, 96, 128, 1536, 0.6e-4),
}
VARIANTS = tuple(SIZES)
CONTEXT = 2048


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """`:small` to `:175b`, each also with `,smoke`."""
  size, smoke = common.parse_arg(arg, VARIANTS)
  num_layers, width, num_heads, head_dim, batch_size, peak = SIZES[size]
  tokens_per_step = batch_size * CONTEXT
  config = common.language_model(
    {
      "max_length": CONTEXT,
      "num_layers": num_layers,
      "width": width,
      "num_heads": num_heads,
      "head_dim": head_dim,
      "scan_layers": True,
      "remat": "dots",
      "dtype": "bfloat16",
    },
    data={
      "source": {"name": "tfds_text", "dataset": "c4/en:3.0.1"},
      "tokenizer": {"name": "file", "path": "tokenizer.json"},
      "length": CONTEXT,
      "batch_size": batch_size,
    },
    optimizer={
      "learning_rate": {
        "peak": peak,
        "warmup_steps": round(375e6 / tokens_per_step),
        "decay_steps": round(260e9 / tokens_per_step),
      }
    },
    train={
      "num_steps": round(300e9 / tokens_per_step),
      "log_every": 100,
      "save_every": 1000,
    },
    evaluators={"validation": {"name": "loss", "every": 1000, "max_batches": 20}},
    mesh={"data": 1, "fsdp": -1},
  )
  return common.smoke(config) if smoke else config
