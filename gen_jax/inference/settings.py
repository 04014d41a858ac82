"""Flags of commands that draw, by family; those in `*_SETTINGS` are keys of `sampling`.

Keywords of argparse by name. Imports nothing: `gen-jax sample --help` waits for it.
"""

_Flags = dict[str, dict[str, object]]

TEXT_SETTINGS: _Flags = {
  **{name: {} for name in ("max_tokens", "temperature", "top_k", "top_p", "min_p")},
  "repetition_penalty": {},
  "order": {"type": lambda words: tuple(words.split(","))},
  "stop": {"action": "append", "help": "may be repeated"},
}
_SWITCHES = {
  "logprobs": "print the log-probability of every token",
  "chat": "each --prompt is a message; the tokenizer's chat template goes around it",
  "infill": "each --prompt holds <FILL>, which is written (data.name=infill)",
  "interactive": "talk in the terminal: /help says how",
}
TEXT_FLAGS: _Flags = {
  **{name: {"action": "store_true", "help": what} for name, what in _SWITCHES.items()},
  "system": {"metavar": "TEXT", "help": "what a chat's model is told first"},
}
IMAGE_SETTINGS: _Flags = {
  **{name: {} for name in ("sampler", "grid", "num_steps", "size", "tile")},
  **{f"guidance_{name}": {} for name in ("scale", "interval", "rescale")},
}
IMAGE_FLAGS: _Flags = {
  "negative": {"help": "negative prompt"},
  "interpolate": {
    "type": int,
    "metavar": "N",
    "help": "N images from the first --prompt to the second",
  },
  "autoencoder": {"metavar": "DIR", "help": "another one for the same latents"},
}
