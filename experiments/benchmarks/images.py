"""Images against `diffusers`: UNets that train and draw, Stable Diffusion's parts."""

import functools
import math

import diffusers
import jax
import jax.numpy as jnp
import measure
import numpy as np
import torch

from gen_jax import rng, sharding, tree
from gen_jax.cost import flops
from gen_jax.diffusion import codec, grids, samplers, schedule, weighting
from gen_jax.diffusion import parameterisation as param
from gen_jax.models import autoencoder, text_encoder, unet
from gen_jax.nn import mlp, spatial
from gen_jax.tasks import conditioning, diffusion

GATED = functools.partial(
  mlp.GatedMLP, activation=functools.partial(jax.nn.gelu, approximate=False)
)
TRANSFORMER = functools.partial(spatial.SpatialTransformer, mlp=GATED, use_bias=False)
CHAIN = schedule.Linear()
STEPS = 50


def ddpm(dtype: str):
  """The CIFAR-10 UNet of Ho et al. 2020, 35.7M: ours and the peer's."""
  config = unet.Config(
    3,
    128,
    (1, 2, 2, 2),
    2,
    (1,),
    num_heads=1,
    attention=spatial.SelfAttention,
    eps=1e-6,
    dtype=dtype,
  )
  peer = diffusers.UNet2DModel(
    sample_size=32,
    layers_per_block=2,
    block_out_channels=(128, 256, 256, 256),
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=None,
    downsample_padding=0,
    flip_sin_to_cos=False,
    freq_shift=1,
    norm_eps=1e-6,
  )
  return unet.UNet(config), peer


def small(dtype: str):
  """A UNet of 1.6M that hears a caption, as for 8x8 digits: ours and the peer's."""
  config = unet.Config(
    1, 48, (1, 2), 1, (), num_heads=4, attention=TRANSFORMER, num_groups=8, dtype=dtype
  )
  peer = diffusers.UNet2DConditionModel(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    layers_per_block=1,
    block_out_channels=(48, 96),
    down_block_types=("DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"),
    cross_attention_dim=64,
    attention_head_dim=4,
    norm_num_groups=8,
  )
  return unet.UNet(config), peer


def weights(model, peer, *args, method=None):
  """Random parameters of ours; as many as the peer has, or they are not the same."""
  shapes = jax.eval_shape(
    functools.partial(model.init, method=method), jax.random.key(0), *args
  )
  shapes = sharding.unbox(shapes)["params"]
  noise = 0.02 * np.random.default_rng(0).standard_normal(1 << 20, np.float32)
  params = jax.tree.map(lambda x: jnp.asarray(np.resize(noise, x.shape)), shapes)
  count = sum(p.numel() for p in peer.parameters())
  assert tree.size(params) == count, (tree.size(params), count)
  return params


def normal(*shape) -> np.ndarray:
  """Standard normal numbers, float32."""
  return np.random.default_rng(1).standard_normal(shape, np.float32)


def tensor(x: np.ndarray) -> torch.Tensor:
  """As it is, where the peer computes."""
  return torch.from_numpy(x).to(measure.DEVICE)


def nchw(x: np.ndarray) -> torch.Tensor:
  """[B, H, W, C] -> [B, C, H, W], contiguous."""
  return tensor(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def call(
  model,
  peer,
  args,
  peer_args,
  rounds: int,
  *,
  dtype: str,
  wrap,
  method=None,
  peer_method="forward",
):
  """One forward pass of a network."""
  params = weights(model, peer, *args, method=method)
  params = jax.tree.map(lambda x: x.astype(dtype), params)
  run = jax.jit(lambda p, *x: model.apply({"params": p}, *x, method=method))
  work = flops.count(run, params, *args)
  peer = peer.eval().to(measure.DEVICE, getattr(torch, dtype))
  peer_args = [x.to(peer.dtype) if x.is_floating_point() else x for x in peer_args]
  peer_call = wrap(getattr(peer, peer_method))

  def other():
    with torch.inference_mode():
      peer_call(*peer_args)

  times = measure.in_turns(
    lambda: run(params, *args).block_until_ready(), other, rounds
  )
  return {"times": times, "flops": work}


def stable_diffusion(rounds: int, *, dtype: str, wrap) -> dict:
  """One call of v1's UNet at 64x64 latents, caption and empty caption: a batch of 2."""
  config = unet.Config(
    4,
    320,
    (1, 2, 4, 4),
    2,
    (0, 1, 2),
    num_heads=8,
    attention=TRANSFORMER,
    timestep_offset=-1.0,
    dtype=dtype,
  )
  peer = diffusers.UNet2DConditionModel(
    sample_size=64, cross_attention_dim=768, attention_head_dim=8
  )
  z, states = normal(2, 64, 64, 4), normal(2, 77, 768)
  return call(
    unet.UNet(config),
    peer,
    (z, np.full(2, 0.5, np.float32), states),
    (nchw(z), tensor(np.full(2, 499)), tensor(states)),
    rounds,
    dtype=dtype,
    wrap=wrap,
  )


def decode(rounds: int, *, dtype: str, wrap) -> dict:
  """Stable Diffusion's autoencoder from 64x64 latents to an image of 512x512."""
  config = autoencoder.Config(3, 4, 128, (1, 2, 4, 4), 2, dtype=dtype)
  peer = diffusers.AutoencoderKL(
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    sample_size=512,
  )
  z = normal(1, 64, 64, 4)
  peer.encoder, peer.quant_conv = torch.nn.Identity(), torch.nn.Identity()
  return call(
    autoencoder.Autoencoder(config),
    peer,
    (z,),
    (nchw(z),),
    rounds,
    dtype=dtype,
    wrap=wrap,
    method="decode",
    peer_method="decode",
  )


def train(make, size: int, batch_size: int, rounds: int, *, dtype: str, wrap) -> dict:
  """A training step: the error in the noise, clipping, AdamW."""
  model, peer_model = make(dtype)
  x = normal(batch_size, size, size, model.config.image_channels)
  weights(model, peer_model, x, np.zeros(batch_size, np.float32))
  nothing = text_encoder.TextEncoder(text_encoder.Config(2, 1, 1, 8, 1))
  caption = np.zeros((batch_size, 1), np.int32)
  task = diffusion.Diffusion(
    network=model,
    conditioning=conditioning.Text(
      nothing, conditioning.Caption(caption[:1], caption[:1] == 0)
    ),
    schedule=CHAIN,
    target=param.Eps(),
    weighting=weighting.Unit(),
    time_sampler=lambda schedule, keys: rng.uniform(keys),
    codec=codec.identity(),
  )
  batch = {
    "image": x,
    "caption": caption,
    "caption_mask": caption == 0,
    "weights": np.ones(batch_size, np.float32),
  }
  ours, work = measure.trainer(task, batch, batch_size)
  chain = diffusers.DDPMScheduler()
  images, peer_model = nchw(x), wrap(peer_model.to(measure.DEVICE))

  def peer_loss():
    noise = torch.randn_like(images)
    times = torch.randint(0, 1000, (batch_size,), device=measure.DEVICE)
    out = peer_model(chain.add_noise(images, noise, times), times).sample
    return torch.nn.functional.mse_loss(out, noise)

  peer = measure.peer_trainer(peer_model, peer_loss, dtype)
  return {"times": measure.in_turns(ours, peer, rounds), "flops": work}


def sample(make, size: int, num: int, states, rounds: int, *, dtype: str, wrap) -> dict:
  """`num` images by DDIM in 50 steps; guided where there are states, for 2 num."""
  model, peer_model = make(dtype)
  x = normal(num, size, size, model.config.image_channels)
  times = grids.uniform(CHAIN, STEPS)
  given = () if states is None else (states,)
  rows = num if states is None else 2 * num
  params = weights(
    model, peer_model, np.resize(x, (rows, *x.shape[1:])), np.zeros(rows), *given
  )
  params = jax.tree.map(lambda x: x.astype(dtype), params)

  def network(params, x, t):
    if states is None:
      return model.apply({"params": params}, x, t)
    both = jnp.concatenate([x, x]), jnp.concatenate([t, t])
    good, bad = jnp.split(model.apply({"params": params}, *both, *given), 2)
    return bad + 3.0 * (good - bad)

  @jax.jit
  def draw(params, x):
    def denoise(x, t):
      return param.solve(param.Eps(), CHAIN, t, x, network(params, x, t))

    keys = rng.per_example(jax.random.key(0), num)
    return samplers.sample(denoise, samplers.ddim(CHAIN), times, x, keys)[0]

  chain = diffusers.DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
  chain.set_timesteps(STEPS)
  peer_model = peer_model.eval().to(measure.DEVICE, getattr(torch, dtype))
  start, peer_call = nchw(x).to(peer_model.dtype), wrap(peer_model)
  peer_given = [tensor(s).to(peer_model.dtype) for s in given]

  def peer():
    with torch.inference_mode():
      z = start
      for t in chain.timesteps:
        out = peer_call(torch.cat([z] * (rows // num)), t, *peer_given).sample
        if peer_given:
          good, bad = out.chunk(2)
          out = bad + 3.0 * (good - bad)
        z = chain.step(out, t, z).prev_sample

  def run():
    return draw(params, x).block_until_ready()

  work = flops.count(draw, params, x)
  assert math.isfinite(float(jnp.sum(draw(params, x))))
  return {"times": measure.in_turns(run, peer, rounds), "flops": work}
