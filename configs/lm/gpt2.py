"""GPT-2 from scratch: Radford et al. 2019, in the four released sizes.

Recipe: nanoGPT's reproduction of the 124M model on OpenWebText (491,520 tokens a step,
600,000 steps, learning rate 6e-4 to 6e-5, warm-up 2,000, weight decay 0.1, beta2 0.95,
clipping at 1), which reports a validation loss of about 2.85 on eight A100 in four
days. The larger sizes take their learning rates from GPT-3's table (Brown et al. 2020,
arXiv:2005.14165, table 2.1). Not yet run here at full size; parameter counts are exact.

    gen-jax train --config configs/lm/gpt2.py:124m --workdir runs/gpt2 \\
      --config.data.tokenizer.path=TOKENIZER

The tokenizer is GPT-2's own, a file or folder that you name. Any source of text can be
used: --config.data.source=files --config.data.source.pattern='texts/*.txt'.
"""

import ml_collections

from configs import common

# layers, width, heads: Radford et al. 2019 table 2 (its smallest is printed as 117M).
SIZES = {
  "124m": (12, 768, 12, 6e-4),
  "355m": (24, 1024, 16, 3e-4),
  "774m": (36, 1280, 20, 2.5e-4),
  "1558m": (48, 1600, 25, 2e-4),
}
VARIANTS = tuple(SIZES)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """`:124m`, `:355m`, `:774m`, `:1558m`, each also with `,smoke`."""
  size, smoke = common.parse_arg(arg, VARIANTS)
  num_layers, width, num_heads, peak = SIZES[size]
  config = common.language_model(
    {
      "num_layers": num_layers,
      "width": width,
      "num_heads": num_heads,
      "scan_layers": True,
      "dtype": "bfloat16",
    },
    data={
      # The last 4,007 of 8,013,769 documents are for validation, as many as nanoGPT's.
      "source": {
        "name": "tfds_text",
        "dataset": "huggingface:openwebtext",
        "train_split": "train[:8009762]",
        "validation_split": "train[8009762:]",
      },
      "tokenizer": {"name": "file", "path": "tokenizer.json"},
      "length": 1024,
      "batch_size": 480,
    },
    optimizer={"learning_rate": {"peak": peak, "warmup_steps": 2000}},
    train={"num_steps": 600_000, "log_every": 100, "save_every": 2000},
    evaluators={"validation": {"name": "loss", "every": 2000, "max_batches": 20}},
  )
  return common.smoke(config) if smoke else config
