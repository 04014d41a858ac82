"""Language models beside `transformers`: GPT-2's training step and generation."""

import jax
import measure
import numpy as np
import torch
import transformers

from gen_jax import rng, sharding, tree
from gen_jax.decoding import generate
from gen_jax.inference import text_generator
from gen_jax.models import transformer
from gen_jax.nn import attention, kernels
from gen_jax.tasks import lm

SMALL = dict(vocab_size=65, max_length=256, num_layers=6, width=384, num_heads=6)
GPT2 = dict(vocab_size=50257, max_length=1024, num_layers=12, width=768, num_heads=12)


def torch_model(config: dict):
  """The peer's GPT-2 of the same size, without dropout."""
  return transformers.GPT2LMHeadModel(
    transformers.GPT2Config(
      vocab_size=config["vocab_size"],
      n_positions=config["max_length"],
      n_embd=config["width"],
      n_layer=config["num_layers"],
      n_head=config["num_heads"],
      resid_pdrop=0.0,
      embd_pdrop=0.0,
      attn_pdrop=0.0,
      bos_token_id=None,
      eos_token_id=None,
      pad_token_id=0,
    )
  ).to(measure.DEVICE)


def our_model(config: dict, dtype: str) -> transformer.Transformer:
  """Ours; with cuDNN's attention where it is at home."""
  is_narrow = measure.DEVICE.type == "cuda" and dtype != "float32"
  attend = kernels.cudnn if is_narrow else attention.attend
  return transformer.Transformer(
    transformer.Config(**config, dtype=dtype, attention_impl=attend)
  )


def train(
  config: dict, batch_size: int, length: int, rounds: int, *, dtype: str, wrap
) -> dict:
  """One step: forward, backward, clipping, AdamW."""
  tokens = np.random.default_rng(0).integers(
    0, config["vocab_size"], (batch_size, length + 1)
  )
  batch = {
    "inputs": tokens[:, :-1].astype(np.int32),
    "targets": tokens[:, 1:].astype(np.int32),
    "weights": np.ones((batch_size, length), np.float32),
  }
  model = our_model(config, dtype)
  task = lm.LanguageModel(model, np.ones(config["vocab_size"], np.int32))
  ours, work = measure.trainer(task, batch, batch_size)
  losses = []
  peer_model = wrap(torch_model(config))
  inputs = torch.from_numpy(tokens[:, :-1]).to(measure.DEVICE)
  targets = torch.from_numpy(tokens[:, 1:]).reshape(-1).to(measure.DEVICE)

  def peer_loss():
    logits = peer_model(inputs, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets)

  peer = measure.peer_trainer(peer_model, peer_loss, dtype)
  times = measure.in_turns(lambda: losses.append(ours()), peer, rounds)
  assert losses[-1] < losses[0]  # it trains
  return {"times": times, "flops": work}


def generation(batch_size: int, rounds: int, *, dtype: str) -> dict:
  """Greedy continuation of 64 tokens by 128, every row to the end."""
  prompt_length, num_tokens = 64, 128
  model = transformer.Transformer(transformer.Config(**GPT2, dtype=dtype))
  tokens = np.random.default_rng(0).integers(0, 50257, (batch_size, prompt_length))
  init = jax.jit(lambda key: sharding.unbox(model.init(key, tokens))["params"])
  params = jax.tree.map(lambda x: x.astype(dtype), init(jax.random.key(0)))
  sampling = generate.Sampling(max_tokens=num_tokens, temperature=0.0)
  writer = text_generator.TextGenerator(model, _Numbers(), sampling, piece=16)
  prompts = tokens.tolist()
  keys = rng.sample_keys(0, batch_size)

  def ours():
    drawn = writer.samples(params, prompts, keys)
    assert all(len(sample.tokens) == num_tokens for sample in drawn)

  peer_model = torch_model(GPT2).eval().to(getattr(torch, dtype))
  inputs = torch.from_numpy(tokens).to(measure.DEVICE)

  def peer():
    with torch.inference_mode():
      out = peer_model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        do_sample=False,
        min_new_tokens=num_tokens,
        max_new_tokens=num_tokens,
      )
    assert out.shape[1] == prompt_length + num_tokens

  times = measure.in_turns(ours, peer, rounds)
  bytes_read = tree.num_bytes(params) * num_tokens
  return {"times": times, "bytes": bytes_read, "tokens": batch_size * num_tokens}


class _Numbers:
  """A tokenizer of numbers: what is compared is the model, not the text."""

  stops = ()

  def stream(self, ids: list[int]) -> list[str]:
    return [f"{i} " for i in ids]
