"""scheduler_config.json: the noise schedule, the target, the sampler and the grid.

`TABLE` maps each scheduler of diffusers to a sampler, and to a grid by its keys
(`_grid`). Import reads it; export searches it for a config that reads back as the same
blocks, so that the two agree.

A key is read, or must have the one value without effect; else it is an error. Keys that
a class does not read are ignored. Missing keys have the defaults of the class, except
two that the pipelines of Stable Diffusion set: clip_sample=False and steps_offset=1.

Source: diffusers 0.42; `tests/convert/test_schedulers.py` compares the two. diffusers
rounds timesteps on Karras and exponential grids, here they are exact; and it lowers the
order of the last steps if there are fewer than 15.
"""

import itertools
import json
import operator
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from gen_jax import build, ranges
from gen_jax.diffusion import parameterisation, schedule
from gen_jax.system import files
from gen_jax.types import InputError, unknown

Block = dict[str, Any]
PATH = "scheduler/scheduler_config.json"
TARGETS = {
  "epsilon": parameterisation.Eps,
  "v_prediction": parameterisation.V,
  "sample": parameterisation.X0,
}
CHAINS = {"scaled_linear": schedule.ScaledLinear, "linear": schedule.Linear}
_CHAIN = {
  "num_train_timesteps": 1000,
  "beta_start": 1e-4,
  "beta_end": 0.02,
  "beta_schedule": "linear",
  "trained_betas": None,
  "prediction_type": "epsilon",
  "rescale_betas_zero_snr": False,
  "steps_offset": 1,
}
_LEVELS = {
  "use_karras_sigmas": False,
  "use_exponential_sigmas": False,
  "use_beta_sigmas": False,
}
_CLIPPED = {"clip_sample": False, "clip_sample_range": 1.0}
_THRESHOLD = {
  "thresholding": False,
  "dynamic_thresholding_ratio": 0.995,
  "sample_max_value": 1.0,
}
_SOLVER = {
  "solver_order": 2,
  "lower_order_final": True,
  "final_sigmas_type": "zero",
  "use_flow_sigmas": False,
  "flow_shift": 1.0,
  "use_dynamic_shifting": False,
  "time_shift_type": "exponential",
}
# Without effect while the keys above that enable them are off.
_IDLE = ("clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value")
_IDLE += ("flow_shift", "time_shift_type", "euler_at_final")


class Kind(NamedTuple):
  """A scheduler of diffusers as a sampler of ours.

  Attributes:
    name: of the class in diffusers.
    sampler: the block, without default values.
    defaults: its keys and their defaults.
    selects: values of keys that select this sampler; other keys must have the values in
      `defaults`, except those of `_grid` and `_IDLE`.
    grid_keys: keys of the grids `leading` and `linspace` for it.
  """

  name: str
  sampler: Block
  defaults: Mapping[str, Any]
  selects: Mapping[str, Any] = {}
  grid_keys: Mapping[str, Any] = {}


def _kinds() -> Iterator[Kind]:
  nodes = {"leading": {}, "linspace": {"rounded": True}}
  chain = {**_CHAIN, "timestep_spacing": "leading"}
  yield Kind(
    "DDIMScheduler",
    {"name": "ddim"},
    {**chain, **_CLIPPED, **_THRESHOLD, "set_alpha_to_one": True},
    grid_keys=nodes,
  )
  yield Kind(
    "PNDMScheduler",
    {"name": "plms"},
    {**chain, "set_alpha_to_one": False, "skip_prk_steps": False},
    {"skip_prk_steps": True},
    nodes,
  )
  yield Kind(
    "DDPMScheduler",
    {"name": "ddpm"},
    {**chain, **_CLIPPED, **_THRESHOLD, "variance_type": "fixed_small"},
    grid_keys=nodes,
  )
  chain = {**_CHAIN, "timestep_spacing": "linspace"}
  euler = {"interpolation_type": "linear", "timestep_type": "discrete"}
  euler |= {"sigma_min": None, "sigma_max": None, "final_sigmas_type": "zero"}
  yield Kind("EulerDiscreteScheduler", {"name": "euler"}, {**chain, **_LEVELS, **euler})
  yield Kind("EulerAncestralDiscreteScheduler", {"name": "euler_ancestral"}, chain)
  heun = {"beta_start": 0.00085, "beta_end": 0.012, **_LEVELS, **_CLIPPED}
  yield Kind("HeunDiscreteScheduler", {"name": "heun"}, {**chain, **heun})
  spare = {"leading": {"spare": 1}, "linspace": {"spare": 1, "rounded": True}}
  common = {**chain, **_LEVELS, **_THRESHOLD, **_SOLVER}
  dpm = {
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "euler_at_final": False,
    "use_lu_lambdas": False,
    "lambda_min_clipped": -float("inf"),
    "variance_type": None,
  }
  for sampler, selects in (
    ({"name": "dpmpp_2m"}, {}),
    ({"name": "dpmpp_3m", "curve": 0.5}, {"solver_order": 3}),
    ({"name": "dpmpp_2m_sde"}, {"algorithm_type": "sde-dpmsolver++"}),
    ({"name": "euler"}, {"solver_order": 1}),
  ):
    yield Kind(
      "DPMSolverMultistepScheduler", sampler, {**common, **dpm}, selects, spare
    )
  unipc = {"predict_x0": True, "solver_type": "bh2", "disable_corrector": []}
  unipc |= dict.fromkeys(("solver_p", "sigma_min", "sigma_max", "shift_terminal"))
  yield Kind("UniPCMultistepScheduler", {"name": "unipc"}, {**common, **unipc},
             grid_keys=spare)  # fmt: skip


TABLE = tuple(_kinds())
NAMES = tuple(dict.fromkeys(kind.name for kind in TABLE))
_SPACINGS = ("leading", "trailing", "linspace")
# Groups of equal samplers; any of a group may be written.
_SAME = (
  ({"name": "ddim"}, {"name": "euler"}),
  ({"name": "ddim", "eta": 1.0}, {"name": "euler_ancestral"}, {"name": "ddpm"}),
)


class Scheduler(NamedTuple):
  """A file as blocks of the task and of sampling."""

  schedule: Block
  target: Block
  sampler: Block
  grid: Block


class Written(NamedTuple):
  """A scheduler to write.

  Attributes:
    name: of the class.
    text: of scheduler_config.json.
    grid: its grid, if that differs slightly from the config's; else None.
  """

  name: str
  text: str
  grid: Block | None = None


def short(kind: str, block: Block | str) -> Block:
  """A block of a sampler or grid under its first name, without default values."""
  block = build.write(kind, block, operator.ne)
  block = {"name": block} if isinstance(block, str) else block
  keys = {k: short(k, v) if k == "grid" and v else v for k, v in block.items()}
  return {**keys, "name": build.TABLES[kind][block["name"]].signature.__name__}


def _grid(kind: Kind, values: Mapping[str, Any]) -> Block:
  """The grid of a scheduler's keys."""
  spacing, offset = values["timestep_spacing"], values["steps_offset"]
  grid = {"name": spacing, **kind.grid_keys.get(spacing, {})}
  if spacing == "leading":
    grid["first"] = (1 + offset) / values["num_train_timesteps"]
  for key, name in _LEVELS_OF.items():
    if values.get(key):
      # Solvers span the whole chain, other samplers only their own steps.
      own = {} if kind.grid_keys or spacing == "linspace" else {"grid": grid}
      grid = {"name": name, **own}
  if not values.get("set_alpha_to_one", True):
    grid = {"name": "to_first_node", "grid": grid}
  return short("grid", grid)


_LEVELS_OF = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "uniform_logsnr"}
_PLACES = ("timestep_spacing", "steps_offset", "set_alpha_to_one", *_LEVELS_OF)


def read(config: Mapping[str, Any], name: str | None = None) -> Scheduler:
  """Reads a scheduler_config.json.

  Args:
    name: of the class, from model_index.json; None: from the file.

  Raises:
    InputError: names an unknown class or key.
  """
  name = name or config.get("_class_name")
  kinds = [kind for kind in TABLE if kind.name == name]
  if not kinds:
    raise unknown(f"scheduler (of {PATH})", name, NAMES)
  defaults = kinds[0].defaults
  given = {key: config[key] for key in defaults if config.get(key) is not None}
  values = {**defaults, **given}
  for key, value in values.items():
    hint = type(defaults[key])
    if hint in (int, float, bool, str) and key not in _IDLE:
      values[key] = ranges.typed(value, hint, f"{PATH} {key}")
  for key, known in (
    ("beta_schedule", CHAINS),
    ("prediction_type", TARGETS),
    ("timestep_spacing", _SPACINGS),
  ):
    if values[key] not in known:
      raise unknown(f"{key} (of {PATH})", values[key], known)
  fitting = [k for k in kinds if all(values[key] == v for key, v in k.selects.items())]
  kind = (fitting or kinds)[-1 if fitting else 0]
  # The last fitting kind is the most specific: `{}` fits all.
  # Networks here count time in steps of 1/1000, whatever the chain's length.
  free = {*_CHAIN, *_PLACES, *_IDLE} - {"trained_betas", "num_train_timesteps"}
  wrong = [
    f"{key}={values[key]!r:.60}"
    for key, usual in {**defaults, **kind.selects}.items()
    if key not in free and values[key] != usual and (values[key] or usual)
  ]
  if all(values.get(key) for key in _LEVELS_OF):
    wrong.append("both use_karras_sigmas and use_exponential_sigmas")
  everything = {key for kind in TABLE for key in kind.defaults}
  wrong += [
    f"{key}={value!r:.60}"
    for key, value in config.items()
    if key not in everything and not key.startswith("_") and value
  ]
  if wrong:
    raise InputError(f"{PATH}: {name} with {', '.join(wrong)} is not supported")
  chain = {
    "name": values["beta_schedule"],
    "num_timesteps": values["num_train_timesteps"],
    "beta_start": values["beta_start"],
    "beta_end": values["beta_end"],
  }
  if values["rescale_betas_zero_snr"]:
    chain = {"name": "zero_terminal", "schedule": chain}
  target = build.TABLES["target"]
  made = TARGETS[values["prediction_type"]]
  target = next(key for key, entry in target.items() if entry.signature is made)
  return Scheduler(chain, {"name": target}, kind.sampler, _grid(kind, values))


def _chain(chain: schedule.Schedule, target: parameterisation.Target) -> Block:
  """The keys for a schedule and a target."""
  is_rescaled = isinstance(chain, schedule.ZeroTerminal)
  chain = chain.schedule if is_rescaled else chain
  kinds = {made: name for name, made in CHAINS.items()}
  types = {made: name for name, made in TARGETS.items()}
  if type(chain) not in kinds or type(target) not in types:
    raise InputError(
      f"schedule {type(chain).__name__} with target {type(target).__name__} cannot be"
      " exported; scaled_linear or linear with eps, v or x0 can, as in"
      " configs/diffusion/ldm_emoji.py:diffusers"
    )
  if chain.num_timesteps != _CHAIN["num_train_timesteps"]:
    raise InputError(
      f"a schedule of num_timesteps={chain.num_timesteps} cannot be exported: diffusers"
      " gives a network the number of the step, which is our 1000 t for 1000 alone"
    )
  return {
    "num_train_timesteps": chain.num_timesteps,
    "beta_start": chain.beta_start,
    "beta_end": chain.beta_end,
    "beta_schedule": kinds[type(chain)],
    "prediction_type": types[type(target)],
    "rescale_betas_zero_snr": is_rescaled,
  }


def write(
  chain: schedule.Schedule,
  target: parameterisation.Target,
  sampler: Block | str,
  grid: Block | str,
  kept: str | None = None,
) -> Written:
  """The scheduler for a sampler and a grid.

  If no class has exactly this grid, one with nearly the same is returned.

  Args:
    sampler, grid: blocks of the config's sampling.
    kept: the file that the model was imported with; returned if it is equivalent.

  Raises:
    InputError: no scheduler can express it.
  """
  trained, sampler, grid = (
    _chain(chain, target),
    short("sampler", sampler),
    short("grid", grid),
  )
  if kept is not None:
    config = files.parse_json(kept, PATH)
    found = read(config)
    if (build.build("schedule", found.schedule), build.build("target", found.target),
        found.sampler, found.grid) == (chain, target, sampler, grid):  # fmt: skip
      return Written(config["_class_name"], kept)
  inner = {**grid, **grid.get("grid", {})}
  offset = round(inner.get("first", 0.002) * trained["num_train_timesteps"]) - 1
  same = [sampler, *(s for group in _SAME if sampler in group for s in group)]
  for view in (lambda grid: grid, _without_ends):
    for name, kind in itertools.product(same, TABLE):
      for places in _places(kind, offset) if kind.sampler == name else ():
        config = {**kind.defaults, **kind.selects, **trained, **places}
        found = read(config, kind.name)
        if found.sampler == name and view(found.grid) == view(grid):
          config = {"_class_name": kind.name, **config}
          text = json.dumps(config, indent=2, sort_keys=True) + "\n"
          return Written(kind.name, text, None if found.grid == grid else found.grid)
  raise InputError(
    f"no scheduler of diffusers has sampler {sampler} on grid {grid}; export with"
    " another, as --config.sampling.sampler=ddim --config.sampling.grid=trailing"
  )


def _without_ends(grid: Block) -> Block:
  """A grid without the keys of its ends and of rounding."""
  while grid["name"] == "to_first_node":
    grid = grid.get("grid", {"name": "leading"})
  dropped = ("spare", "rounded", "grid")
  name = {"uniform": "trailing"}.get(grid["name"], grid["name"])
  return {**{k: v for k, v in grid.items() if k not in dropped}, "name": name}


def _places(kind: Kind, offset: int) -> Iterator[Block]:
  """All combinations of a scheduler's keys for its grid."""
  options = {
    "timestep_spacing": _SPACINGS,
    "steps_offset": (1, offset),
    **dict.fromkeys(_LEVELS_OF, (False, True)),
    "set_alpha_to_one": (True, False),
  }
  options = {key: values for key, values in options.items() if key in kind.defaults}
  for values in itertools.product(*options.values()):
    places = dict(zip(options, values, strict=True))
    if not all(places.get(key) for key in _LEVELS_OF):
      yield places
