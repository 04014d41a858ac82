"""Writes tests/golden_pictures: tiny random Stable Diffusions, and what they compute.

Runs in an environment of its own with torch, transformers, diffusers and peft, which
the tests do not need:

    python tools/make_image_golden.py tests/golden_pictures

Each folder is a pipeline as diffusers saves it, with expected.npz: inputs, outputs of
the three networks and of blocks inside them, gradients by parameter, and the token ids
that CLIP's tokenizer gives. Every parameter is random, so that each term matters.
"""

import json
import pathlib
import sys

import diffusers
import numpy as np
import peft
import safetensors.torch
import torch
import transformers

SEED = 7
TEXTS = ("A red  apple", "it's 3 o'clock: naïve café", "日本 🙂", "", "wow?? 42")
UNET = dict(
  block_out_channels=(8, 16),
  down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
  up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
  layers_per_block=1,
  norm_num_groups=4,
  cross_attention_dim=12,
  sample_size=8,
)
VARIANTS = {
  "v1": dict(
    unet=dict(attention_head_dim=2, in_channels=4),
    text=dict(hidden_act="quick_gelu"),
    scheduler=dict(prediction_type="epsilon"),
  ),
  "v2_inpainting": dict(
    unet=dict(attention_head_dim=(2, 4), in_channels=9, use_linear_projection=True),
    text=dict(hidden_act="gelu"),
    scheduler=dict(prediction_type="v_prediction"),
  ),
}
BLOCKS = {
  "down_blocks.0.resnets.0": "down_0_0",
  "down_blocks.0.attentions.0": "down_0_0_transformer",
  "mid_block.attentions.0": "middle_transformer",
  "up_blocks.1.resnets.1": "up_0_1",
}
GRADIENTS = (
  "conv_in.weight",
  "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
  "mid_block.resnets.0.time_emb_proj.weight",
  "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj.weight",
)


def randomise(model):
  """Every parameter random; norms about 1."""
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      noise = torch.randn_like(parameter) * 0.15
      is_scale = "norm" in name and name.endswith("weight")
      parameter.copy_(noise + (1.0 if is_scale else 0.0))
  return model.eval()


def tokenizer(folder: pathlib.Path):
  """CLIP's kind of BPE, with a handful of merges."""
  values = transformers.models.clip.tokenization_clip
  table = getattr(values, "bytes_to_unicode", None)
  if table is None:
    from transformers.convert_slow_tokenizer import bytes_to_unicode as table
  letters = list(table().values())
  merges = [("a", "p"), ("ap", "p"), ("l", "e</w>"), ("app", "le</w>"), ("r", "e")]
  merges += [("re", "d</w>"), ("?", "?"), ("w", "o"), ("wo", "w</w>")]
  tokens = [*letters, *(f"{c}</w>" for c in letters), *("".join(m) for m in merges)]
  tokens += ["<|startoftext|>", "<|endoftext|>"]
  folder.mkdir(parents=True, exist_ok=True)
  vocab = {token: i for i, token in enumerate(tokens)}
  (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
  lines = ["#version: 0.2", *(" ".join(m) for m in merges)]
  (folder / "merges.txt").write_text("\n".join(lines) + "\n")
  marks = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "!",
  }
  (folder / "special_tokens_map.json").write_text(json.dumps(marks))
  config = {**marks, "tokenizer_class": "CLIPTokenizer", "model_max_length": 16}
  (folder / "tokenizer_config.json").write_text(json.dumps(config))
  return transformers.CLIPTokenizer.from_pretrained(folder), len(vocab)


def write(folder: pathlib.Path, variant) -> None:
  """One pipeline."""
  torch.manual_seed(SEED)
  words, vocab_size = tokenizer(folder / "tokenizer")
  text = randomise(
    transformers.CLIPTextModel(
      transformers.CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=12,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=16,
        **variant["text"],
      )
    )
  )
  unet = randomise(diffusers.UNet2DConditionModel(**{**UNET, **variant["unet"]}))
  vae = randomise(
    diffusers.AutoencoderKL(
      block_out_channels=(8, 16),
      down_block_types=("DownEncoderBlock2D",) * 2,
      up_block_types=("UpDecoderBlock2D",) * 2,
      norm_num_groups=4,
      sample_size=16,
    )
  )
  scheduler = diffusers.DDIMScheduler(
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.012,
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
    **variant["scheduler"],
  )
  for part, model in (("unet", unet), ("vae", vae), ("text_encoder", text)):
    model.save_pretrained(folder / part)
  scheduler.save_pretrained(folder / "scheduler")
  index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1"}
  (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")

  seen = {}
  modules = dict(unet.named_modules())
  for name in BLOCKS:

    def keep(module, args, out, name=name):
      seen[name] = out[0] if isinstance(out, tuple) else getattr(out, "sample", out)

    modules[name].register_forward_hook(keep)
  ids = [
    words(t, padding="max_length", truncation=True, max_length=16).input_ids
    for t in TEXTS
  ]
  tokens = torch.tensor(ids)[:2]
  states = text(tokens).last_hidden_state
  x = torch.randn(2, unet.config.in_channels, 8, 8)
  timesteps = torch.tensor([3, 700])
  out = unet(x, timesteps, states).sample
  (out**2).mean().backward()
  image = torch.rand(2, 3, 16, 16) * 2 - 1
  posterior = vae.encode(image).latent_dist
  z = torch.randn(2, 4, 8, 8)
  parameters = dict(unet.named_parameters())

  def last(y):
    return y.movedim(1, -1)

  arrays = {
    "ids": np.array(ids),
    "states": states,
    "x": last(x),
    "timesteps": timesteps,
    "out": last(out),
    "image": last(image),
    "mean": last(posterior.mean),
    "std": last(posterior.std),
    "z": last(z),
    "decoded": last(vae.decode(z).sample),
    **{f"block/{BLOCKS[name]}": last(value) for name, value in seen.items()},
    **{f"gradient/{name}": parameters[name].grad for name in GRADIENTS},
  }
  np.savez_compressed(
    folder / "expected.npz",
    texts=np.array(TEXTS),
    **{k: getattr(v, "detach", lambda v=v: v)() for k, v in arrays.items()},
  )


def write_taesd(folder: pathlib.Path) -> None:
  """A narrow TAESD by the names of its release: layers by number, in bfloat16."""
  torch.manual_seed(SEED)
  model = diffusers.AutoencoderTiny(
    encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4
  )
  model = randomise(model).bfloat16().float()
  folder.mkdir(parents=True, exist_ok=True)
  for half, shift in (("encoder", 0), ("decoder", 1)):  # the release counts the bound
    tensors = {}
    for name, tensor in getattr(model, half).layers.state_dict().items():
      number, rest = name.split(".", 1)
      tensors[f"{int(number) + shift}.{rest}"] = tensor.bfloat16().contiguous()
    safetensors.torch.save_file(tensors, folder / f"taesd_{half}.safetensors")
  image, z = torch.rand(2, 3, 16, 24) * 2 - 1, 4 * torch.randn(2, 4, 2, 3)
  with torch.no_grad():
    arrays = {
      "image": image,
      "code": model.encode(image).latents,
      "z": z,
      "decoded": model.decode(z).sample,
    }
  last = {name: value.movedim(1, -1).numpy() for name, value in arrays.items()}
  np.savez_compressed(folder / "expected.npz", **last)


LORA_SCALE = 0.7
TARGETS = {
  "unet": ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "ff.net.0.proj", "ff.net.2"],
  "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
}
CONVOLUTIONS = ["conv1", "conv2", "conv_shortcut"]


def pipeline(folder: pathlib.Path) -> diffusers.StableDiffusionPipeline:
  """A folder, opened."""

  def of(make, part):
    return make.from_pretrained(folder / part)

  return diffusers.StableDiffusionPipeline(
    unet=of(diffusers.UNet2DConditionModel, "unet"),
    vae=of(diffusers.AutoencoderKL, "vae"),
    text_encoder=of(transformers.CLIPTextModel, "text_encoder"),
    tokenizer=of(transformers.CLIPTokenizer, "tokenizer"),
    scheduler=of(diffusers.DDIMScheduler, "scheduler"),
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
  )


def write_lora(folder: pathlib.Path) -> None:
  """LoRA files of the tiny v1 in both spellings, and what diffusers draws with them.

  Needs peft. Both have a rank of 2 and an alpha of 3; kohya's also has convolutions.
  """
  with np.load(folder / "expected.npz") as file:
    given = {name: torch.from_numpy(file[name]) for name in ("ids", "x", "timesteps")}
  # transformers asks for a newer peft than there is; this part of it did not change.
  transformers.integrations.peft.check_peft_version = lambda **_: None
  arrays = {}
  for name, is_kohya in (("lora_diffusers", False), ("lora_kohya", True)):
    torch.manual_seed(SEED)
    pipe = pipeline(folder)
    tensors = {}
    for part, targets in TARGETS.items():
      model = getattr(pipe, part)
      more = CONVOLUTIONS if is_kohya and part == "unet" else []
      model.add_adapter(
        peft.LoraConfig(r=2, lora_alpha=3, target_modules=targets + more), "one"
      )
      for key, parameter in model.named_parameters():
        if "lora_" in key:
          torch.nn.init.normal_(parameter, std=0.3)
      tensors[part] = peft.get_peft_model_state_dict(model, adapter_name="one")
    if is_kohya:
      save_kohya(tensors, folder / f"{name}.safetensors")
    else:
      diffusers.StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=tensors["unet"],
        text_encoder_lora_layers=tensors["text_encoder"],
        weight_name=f"{name}.safetensors",
        **{
          f"{part}_lora_adapter_metadata": getattr(pipe, part)
          .peft_config["one"]
          .to_dict()
          for part in TARGETS
        },
      )
    pipe = pipeline(folder)
    pipe.load_lora_weights(folder, weight_name=f"{name}.safetensors")
    pipe.fuse_lora(lora_scale=LORA_SCALE)
    with torch.no_grad():
      states = pipe.text_encoder(given["ids"][:2]).last_hidden_state
      x = given["x"].movedim(-1, 1)
      out = pipe.unet(x, given["timesteps"], states).sample
    arrays[f"{name}/states"] = states.numpy()
    arrays[f"{name}/out"] = out.movedim(1, -1).numpy()
  np.savez_compressed(folder / "expected_lora.npz", scale=LORA_SCALE, **arrays)


def save_kohya(tensors, file: pathlib.Path) -> None:
  """By kohya's names: modules with _ for dots, an alpha for each."""
  renamed = {}
  for part, prefix in (("unet", "lora_unet"), ("text_encoder", "lora_te")):
    for key, tensor in tensors[part].items():
      module, end = key.removeprefix("base_model.model.").rsplit(".lora_", 1)
      if part == "text_encoder" and not module.startswith("text_model."):
        module = f"text_model.{module}"
      stem = f"{prefix}_{module.replace('.', '_')}"
      end = {"A.weight": "lora_down.weight", "B.weight": "lora_up.weight"}[end]
      renamed[f"{stem}.{end}"] = tensor.contiguous()
      renamed[f"{stem}.alpha"] = torch.tensor(3.0)
  safetensors.torch.save_file(renamed, file)


def write_edit(folder: pathlib.Path) -> None:
  """What InstructPix2Pix draws with the tiny v1, its first kernel made twice as deep.

  The image's four channels have half the latents' kernel, in reverse order.
  """
  pipe = pipeline(folder)
  old = pipe.unet.conv_in
  pipe.unet.conv_in = torch.nn.Conv2d(8, old.out_channels, 3, padding=1)
  pipe.unet.register_to_config(in_channels=8)
  with torch.no_grad():
    wide = torch.cat([old.weight, 0.5 * old.weight.flip(1)], 1)
    pipe.unet.conv_in.weight.copy_(wide)
    pipe.unet.conv_in.bias.copy_(old.bias)
  parts = {k: v for k, v in pipe.components.items() if k != "image_encoder"}
  pipe = diffusers.StableDiffusionInstructPix2PixPipeline(
    **parts, requires_safety_checker=False
  )
  pipe.set_progress_bar_config(disable=True)
  torch.manual_seed(SEED)
  image, noise = torch.rand(1, 3, 16, 16), torch.randn(1, 4, 8, 8)
  drawn = pipe(
    TEXTS[0],
    image=image,
    latents=noise,
    num_inference_steps=2,
    guidance_scale=7.5,
    image_guidance_scale=1.5,
    output_type="latent",
  ).images
  np.savez_compressed(
    folder / "expected_edit.npz",
    image=2.0 * image.movedim(1, -1).numpy() - 1.0,
    noise=noise.movedim(1, -1).numpy(),
    drawn=drawn.movedim(1, -1).numpy(),
    steps=pipe.scheduler.timesteps.numpy(),
  )


def main() -> None:
  """Writes all models and where they come from."""
  target = pathlib.Path(sys.argv[1])
  write_taesd(target / "taesd")
  for name, variant in VARIANTS.items():
    write(target / name, variant)
  write_lora(target / "v1")
  write_edit(target / "v1")
  provenance = {
    "made_by": "tools/make_image_golden.py",
    "seed": SEED,
    "torch": torch.__version__,
    "transformers": transformers.__version__,
    "diffusers": diffusers.__version__,
  }
  (target / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")


if __name__ == "__main__":
  main()
