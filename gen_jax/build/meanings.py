"""What a key of a config means: its line in the docstring of what takes it.

Keys that mean the same wherever they stand, and those whose owner's docstring is a
formula with them, have their line here.
"""

import functools
import inspect
import re
from typing import Any

# By key, or by "kind.key" where the kind gives it another meaning.
_LINES = {
  # Tasks and models.
  "model": "the network.",
  "z_loss": "weight of (log Z)^2 in the loss; metrics leave it out.",
  "text_encoder": "encodes the captions.",
  "num_classes": "classes of the data; the table has one row more, for no class.",
  "autoencoder": "the network whose latents these are.",
  "vocab_size": "V.",
  "tokenizer.vocab_size": "the most tokens that it may have, with the single bytes.",
  "max_length": "the longest sequence, in tokens.",
  "num_layers": "L.",
  "width": "D.",
  "num_heads": "N; D / N is the head size.",
  "activation": "the pointwise non-linearity.",
  "position": "additive positions, or None.",
  "rotary": "how queries and keys are rotated by position, or None.",
  "dropout": "rate after embedding, attention and feed-forward.",
  "dtype": "dtype of the computation; parameters are float32.",
  "attention_impl": "how attention is computed, see `attention_impl`.",
  "attention_impl.chunk": "keys at a time.",
  "attention_impl.block": "queries and keys at a time.",
  "attention.eps": "added to the variance of the norm.",
  "norm.eps": "added to the variance, or to the mean square.",
  "use_bias": "whether a bias is added.",
  "init_std": "initial standard deviation, of a model's matrices and tables.",
  "max_period": "period of the slowest sinusoid, in positions, over 2 pi.",
  "base": "base of the frequencies, theta; larger for longer contexts.",
  "scaling": "how frequencies are changed for a longer context, or None.",
  "scaling.factor": "how many times as long the context becomes.",
  "low_freq_factor": "turns within original_length up to which a frequency is divided.",
  "high_freq_factor": "turns from which on a frequency is kept.",
  "original_length": "length of the context before, in tokens.",
  # Diffusion.
  "beta_min": "beta at t = 0.",
  "beta_max": "beta at t = 1.",
  "beta_start": "variance of the first step.",
  "beta_end": "variance of the last step.",
  "schedule.schedule": "the schedule that is changed.",
  "schedule.factor": "the log-SNR falls by 2 log(factor).",
  "offset": "s, which keeps the noise near t = 0 from being too small.",
  "sigma_min": "the lowest noise level above 0.",
  "sigma_max": "the highest noise level.",
  "rho": "curvature of the levels: larger, and more of them are low.",
  "sigma_data": "standard deviation of the data.",
  "weighting.gamma": "the largest weight on x0.",
  "bias": "log-SNR at which the weight on eps is one half.",
  "t_min": "lowest time.",
  "t_max": "highest time.",
  "mean": "mean of the normal distribution.",
  "std": "its standard deviation.",
  "codec.shift": "subtracted from the data.",
  "codec.scale": "by which the result is divided.",
  "codec.side": "of a patch, in pixels.",
  "eta": "noise of each step: 0 is deterministic, 1 ancestral.",
  "sampler.scale": "coordinates of the integration: x / scale(alpha, sigma).",
  "sampler.sampler": "the sampler that takes the steps.",
  "sampler.gamma": "by how much sigma / alpha grows before a step, relatively.",
  "curve": "factor of the quadratic term; 0.5 is the authors' code, of order 2.",
  "first": "the last time above 0.",
  "grid.grid": "the grid whose range is kept, or which is changed.",
  "logsnr_max": "log-SNR of the last level above 0.",
  # Training.
  "learning_rate": "the rate as a function of the step.",
  "peak": "the largest rate.",
  "warmup_steps": "steps of the linear rise from 0.",
  "final_fraction": "rate at the end, as a share of the peak.",
  "decay_steps": "step at which the decay ends; None: the last one.",
  "decay_fraction": "share of all steps that the decay takes.",
  "b1": "decay of the average of gradients; Lion: its share in an update.",
  "b2": "decay of the average of squared gradients; Lion: of its momentum.",
  "momentum": "decay of the momentum.",
  "optimizer.eps": "added to the root of the average square.",
  "weight_decay": "decoupled decay of kernels and tables, times the rate.",
  "clip_norm": "largest global norm of a gradient; None: no clipping.",
  "mesh.data": "devices along the axis for copies of the parameters; -1: all the rest.",
  "fsdp": "devices over which parameters and optimiser state are split.",
  "tensor": "devices over which heads and feed-forwards are split.",
  "context": "devices over which sequences are split.",
  "rules": "preset of `sharding.PRESETS`: dp, fsdp or fsdp_tensor.",
  # Data.
  "source": "where documents or images come from.",
  "tokenizer": "of the text.",
  "length": "T, tokens of a row.",
  "batch_size": "B, rows of a batch over all devices.",
  "rate": "share of documents that are rearranged.",
  "marks": "control tokens that open prefix, suffix and middle.",
  "image_size": "side of the square images, in pixels.",
  "channels": "1: grey, 3: colour.",
  "flip": "whether images are mirrored at random.",
  "pattern": "a path, or a glob.",
  "path": "of the file or folder.",
  "paths": "the stores.",
  "directory": "the folder.",
  "field": "name of the field.",
  "validation_fraction": "share of the data held out for validation.",
  "dataset": "name in TFDS, or the folder of a prepared data set.",
  "image_field": "name of the field with the image.",
  "image_key": "name of the array of images.",
  "caption_key": "name of the array of captions.",
  "train_split": "name of the split to train on.",
  "validation_split": "name of the split to validate on.",
  "data_dir": "where TFDS keeps data sets; None: its own folder.",
  "layout": "of a tiktoken file, where the number of ranks does not say it.",
  # Evaluators.
  "every": "steps between evaluations; 0: only at the end.",
  "num": "how many examples, parts or images, see the evaluator.",
  "split": "of the data: 'train' or 'validation'.",
  "max_batches": "at most so many batches of the split; None: all.",
  "num_steps": "steps of the solver.",
  "features": "in what space images are compared.",
  "weights": "a file of the network's weights (tools/convert_features.py).",
  "features.side": "side of the images that are compared, in pixels.",
  "prompts": "what is drawn.",
  "seed": "example i depends on (seed, i).",
}


def of(owner: Any, kind: str, key: str) -> str:
  """A key's meaning in one line; '' if nothing says it.

  The docstrings of the classes that the owner inherits from count as well.

  Args:
    owner: the class or function that takes the key.
    kind: of the block, as in `tables.TABLES`.

  >>> of(of, "norm", "kind"), of(of, "norm", "base")[:8]
  ('of the block, as in `tables.TABLES`.', 'base of ')
  """
  owners = inspect.getmro(owner) if inspect.isclass(owner) else (owner,)
  found = next(filter(None, (_described(one, key) for one in owners)), "")
  return found or _LINES.get(f"{kind}.{key}") or _LINES.get(key, "")


@functools.cache
def _described(owner: Any, key: str) -> str:
  """An attribute's or argument's description in a docstring, in one line."""
  said: list[str] = []
  for line in (inspect.getdoc(owner) or "").splitlines():
    if re.match(rf"  (\w+, )*{key}(, \w+)*: ", line):
      said = [line.partition(": ")[2]]
    elif said and not line.startswith("    "):
      break
    elif said:
      said.append(line.strip())
  return " ".join(said)
