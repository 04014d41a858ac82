"""`gen-jax evaluate`: the config's evaluators on a checkpoint, protocol included."""

import pathlib

from gen_jax.cli import workdir


def add_arguments(parser) -> None:
  """See `gen-jax evaluate --help`."""
  workdir.add_arguments(parser)


def run(args) -> dict:
  """Evaluates; also written to WORKDIR/evaluation.json."""
  directory = pathlib.Path(args.workdir)
  config = workdir.read_config(directory, args.overrides)
  opened = workdir.open_trained(directory, config, args.checkpoint, args.weights)
  result = {"step": opened.step, "weights": opened.kind}
  print(f"step {opened.step}, {opened.kind} weights")
  for evaluator in opened.experiment.evaluators():
    for name, value in evaluator(opened.weights, opened.experiment.frozen):
      print(f"{name:32} {value:.4f}", flush=True)
      result[name] = value
  result["sampling"] = config["sampling"]
  workdir.write_json(directory / "evaluation.json", result)
  return result
