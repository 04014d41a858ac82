"""What a diffusion model is conditioned on: nothing, a class, or a caption.

A prompt is a tree of arrays [B, ...]; `encode` turns it into the `States` that the
network takes. Under the null prompt the network is the unconditional model of
classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598).
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import rng
from gen_jax.types import UNCONDITIONAL, Array, Batch, Params, PyTree, States


class Caption(NamedTuple):
  """Tokens int [B, S], and mask bool [B, S], False at padding."""

  tokens: Array | np.ndarray
  mask: Array | np.ndarray


class Conditioning(Protocol):
  """How a task conditions its network."""

  reads: tuple[str, ...]  # what it needs of the data: 'caption', 'label'

  def init(self, key: Array, batch: Batch) -> Mapping[str, Params]:
    """Fresh parameters, by their names among the task's."""

  def encode(self, params: Params, prompt: PyTree, *, train: bool, key) -> States:
    """The states of a prompt.

    Args:
      params: the task's.
      prompt: arrays [B, ...].
      train: apply dropout, drawn by `key`.
    """

  def null(self, batch_size: int) -> PyTree:
    """The null prompt, batch_size times."""

  def of(self, batch: Batch) -> PyTree:
    """The prompt of a batch."""


@dataclasses.dataclass(frozen=True)
class Unconditional:
  """No prompt: ()."""

  reads = ()

  def init(self, key, batch):
    del key, batch
    return {}

  def encode(self, params, prompt, *, train=False, key=None):
    del params, prompt, train, key
    return UNCONDITIONAL

  def null(self, batch_size):
    del batch_size
    return ()

  def of(self, batch):
    del batch
    return ()


@dataclasses.dataclass(frozen=True, eq=False)
class ClassLabels:
  """A label int [B]; `num_classes` is the null class.

  Attributes:
    encoder: labels int [B] in [0, num_classes] -> States with a vector.
    num_classes: labels of data are 0 .. num_classes - 1.
  """

  encoder: nn.Module
  num_classes: int

  reads = ("label",)

  def init(self, key, batch):
    params = self.encoder.init(rng.named(key, "labels"), batch["label"])["params"]
    return {"labels": params}

  def encode(self, params, prompt, *, train=False, key=None):
    del train, key
    return self.encoder.apply({"params": params["labels"]}, prompt)

  def null(self, batch_size):
    return jnp.full((batch_size,), self.num_classes, jnp.int32)

  def of(self, batch):
    return batch["label"]


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
  """A `Caption`, encoded by a text encoder that is trained with the network.

  Attributes:
    text_encoder: (tokens [B, S], mask [B, S]) -> States with tokens.
    null_caption: the empty caption, with B = 1.
  """

  text_encoder: nn.Module
  null_caption: Caption

  reads = ("caption",)

  def init(self, key, batch):
    key = rng.named(key, "text_encoder")
    return {"text_encoder": self.text_encoder.init(key, *self.of(batch))["params"]}

  def encode(self, params, prompt, *, train=False, key=None):
    rngs = {"dropout": rng.named(key, "text")} if train else None
    variables = {"params": params["text_encoder"]}
    return self.text_encoder.apply(variables, *prompt, train=train, rngs=rngs)

  def null(self, batch_size):
    return jax.tree.map(
      lambda x: jnp.broadcast_to(x, (batch_size, *x.shape[1:])), self.null_caption
    )

  def of(self, batch):
    return Caption(batch["caption"], batch["caption_mask"])
