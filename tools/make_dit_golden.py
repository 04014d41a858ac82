"""Writes tests/golden_dit: a tiny random DiT, and what diffusers computes with it.

Runs in an environment of its own with torch, diffusers and peft, which the tests do not
need:

    python tools/make_dit_golden.py tests/golden_dit

The folder is a transformer/ as diffusers saves it, with expected.npz: inputs, outputs,
the state after each block, gradients by parameter, and the positions. Every parameter
is random, so that each term matters; the blocks' copies of the embedders are equal, as
in the release. `expected.npz` has float32 arrays with the channels last.

The folder adapter/ is a LoRA adapter as PEFT saves it, with ranks and scales that
differ, and `adapted` in expected.npz what the transformer gives with it.
"""

import json
import pathlib
import sys

import diffusers
import numpy as np
import peft
import torch

SEED = 7
CONFIG = dict(
  num_attention_heads=2,
  attention_head_dim=8,
  in_channels=4,
  out_channels=8,
  num_layers=2,
  sample_size=8,
  patch_size=2,
  num_embeds_ada_norm=5,
)
GRADIENTS = (
  "pos_embed.proj.weight",
  "transformer_blocks.0.norm1.linear.weight",
  "transformer_blocks.1.attn1.to_k.weight",
  "transformer_blocks.1.ff.net.0.proj.bias",
  "proj_out_1.weight",
)

ADAPTER = dict(
  r=3,
  lora_alpha=6,
  target_modules=["to_q", "to_out.0", "ff.net.2", "norm1.linear", "proj_out_2", "proj"],
  rank_pattern={"to_q": 2},
  alpha_pattern={"ff.net.2": 5, "ff.net.0.proj": 1},
)


def adapt(model, folder):
  """The model with a random adapter, which is saved."""
  torch.manual_seed(SEED + 1)
  adapted = peft.get_peft_model(model, peft.LoraConfig(**ADAPTER)).eval()
  for name, parameter in adapted.named_parameters():
    if "lora_" in name:
      torch.nn.init.normal_(parameter, std=0.2)
  adapted.save_pretrained(folder)
  (folder / "README.md").unlink()
  return adapted


def randomise(model):
  """Every parameter random; one time and class embedder for all blocks."""
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.copy_(torch.randn_like(parameter) * 0.25)
    first = model.transformer_blocks[0].norm1.emb.state_dict()
    for block in model.transformer_blocks[1:]:
      block.norm1.emb.load_state_dict(first)
  return model.eval()


def main() -> None:
  """Writes the model, what it computes, and where it comes from."""
  target = pathlib.Path(sys.argv[1])
  torch.manual_seed(SEED)
  model = randomise(diffusers.DiTTransformer2DModel(**CONFIG))
  model.save_pretrained(target / "transformer")
  blocks = []
  for block in model.transformer_blocks:
    block.register_forward_hook(lambda module, args, out: blocks.append(out.detach()))
  x = torch.randn(3, 4, 8, 8)
  timesteps, labels = torch.tensor([0, 3, 999]), torch.tensor([0, 4, 5])
  out = model(x, timesteps, labels).sample
  (out[:, :4] ** 2).mean().backward()

  def last(y):
    return y.detach().movedim(1, -1).numpy()

  parameters = dict(model.named_parameters())
  found = {f"block/{i}": value.numpy() for i, value in enumerate(blocks)}
  found |= {f"gradient/{name}": parameters[name].grad.numpy() for name in GRADIENTS}
  with torch.no_grad():
    adapted = adapt(model, target / "adapter")(x, timesteps, labels).sample
  np.savez_compressed(
    target / "expected.npz",
    x=last(x),
    timesteps=timesteps.numpy(),
    labels=labels.numpy(),
    out=last(out),
    positions=model.pos_embed.pos_embed[0].numpy(),
    **found,
    adapted=last(adapted),
  )
  provenance = {
    "made_by": "tools/make_dit_golden.py",
    "seed": SEED,
    "torch": torch.__version__,
    "diffusers": diffusers.__version__,
    "peft": peft.__version__,
  }
  (target / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")


if __name__ == "__main__":
  main()
