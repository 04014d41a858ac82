"""Both models, from data to prompts answered, by the commands a user would type.

Trains and samples a small decoder-only transformer and a small text-conditioned
diffusion model (training ends with an evaluation), then writes report.html and
summary.json.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXT_PROMPTS = ("The ", "A class definition ", "Changed in version 3")
DIGIT_PROMPTS = (
  "a handwritten zero",
  "the digit one",
  "two",
  "a picture of the number three",
  "somebody wrote a four",
  "a handwritten five",
  "the digit six",
  "seven",
  "a picture of the number eight",
  "somebody wrote a nine",
)


def gen_jax(*words: str, env: dict[str, str]) -> dict:
  """Runs one command, lets its output through, and returns its JSON object."""
  print(f"\n$ gen-jax {' '.join(words)}", flush=True)
  command = [sys.executable, "-m", "gen_jax.cli.main", *words, "--json"]
  with subprocess.Popen(
    command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env, bufsize=1
  ) as process:
    last = ""
    for line in process.stdout:
      if last:
        print(last, end="", flush=True)
      last = line
  if process.returncode:
    sys.exit(process.returncode)
  return json.loads(last)


def main() -> None:
  """Runs everything; the same folder resumes where it stopped."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--out", default="runs/quickstart", type=pathlib.Path)
  parser.add_argument("--smoke", action="store_true", help="seconds, not minutes")
  args = parser.parse_args()
  out = (ROOT / args.out).resolve()
  out.mkdir(parents=True, exist_ok=True)
  env = {**os.environ, "TFDS_DATA_DIR": str(out / "data")}
  variant = ":smoke" if args.smoke else ""
  text, digits = str(out / "text"), str(out / "digits")
  seconds: dict[str, float] = {}

  def phase(name: str, *words: str) -> dict:
    began = time.monotonic()
    result = gen_jax(*words, env=env)
    seconds[name] = round(time.monotonic() - began, 1)
    return result

  config = f"configs/lm/pydoc.py{variant}"
  lm = phase("train_text", "train", "--config", config, "--workdir", text)
  prompts = [word for prompt in TEXT_PROMPTS for word in ("--prompt", prompt)]
  phase("sample_text", "sample", "--workdir", text, *prompts)

  config = f"configs/diffusion/digits.py{variant}"
  images = phase("train_digits", "train", "--config", config, "--workdir", digits)
  prompts = [word for prompt in DIGIT_PROMPTS for word in ("--prompt", prompt)]
  # Validation loss says little about images: take the last weights, not the "best".
  opened = ("--workdir", digits, "--checkpoint", "latest")
  phase("sample_digits", "sample", *opened, "--num", "12", *prompts)

  report = out / "report.html"
  summary = {
    "lm_bits_per_byte": lm["validation/bits_per_byte"],
    "gzip_bits_per_byte": lm.get("gzip/bits_per_byte"),
    "digit_accuracy": images.get("prompt_accuracy"),
    "real_digit_accuracy": images.get("real_accuracy"),
    "seconds": {**seconds, "all": round(sum(seconds.values()), 1)},
    "report": str(report),
  }
  path = out / "summary.json"
  path.write_text(json.dumps(summary, indent=2) + "\n")
  words = ("--workdir", text, "--workdir", digits, "--out", str(report))
  title = "gen_jax quickstart"
  gen_jax("report", *words, "--title", title, "--summary", str(path), env=env)
  print("\n" + path.read_text() + f"\nreport: {report}")


if __name__ == "__main__":
  main()
