"""Schedulers of diffusers: what they are here, and back; the same levels as theirs."""

import functools
import json
import pathlib

import numpy as np
import pytest

from gen_jax import build
from gen_jax.convert import diffusers_schedulers as schedulers
from gen_jax.diffusion import parameterisation
from gen_jax.diffusion import schedule as schedules
from gen_jax.types import InputError

FOLDER = pathlib.Path(__file__).parents[1] / "golden_samplers"
PLACES = json.loads((FOLDER / "places.json").read_text())
CHAIN = schedules.ScaledLinear()
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def objects(found: schedulers.Scheduler):
  return build.build("schedule", found.schedule), build.build("target", found.target)


def test_steps_where_theirs_step():
  """All classes, spacings, kinds of levels and ends; numbers that divide and do not."""
  for row in PLACES:
    config = row["config"]
    found = schedulers.read(config)
    chain, _ = objects(found)
    times = build.build("grid", found.grid)(chain, row["num_steps"])
    levels = np.exp(-0.5 * np.asarray(chain.logsnr(times), np.float64))
    np.testing.assert_allclose(levels, row["levels"], rtol=5e-5, err_msg=str(config))
  assert len(PLACES) > 100 and {r["config"]["_class_name"] for r in PLACES} == {
    *schedulers.NAMES
  }


def test_what_is_written_is_read_as_the_same():
  """Of every class, by every way it can place its steps; and the file comes back.

  Another class may be written where it does the very same.
  """
  seen, number = set(), 0
  for kind in schedulers.TABLE:
    for places in schedulers._places(kind, 2):
      config = {
        "_class_name": kind.name,
        **kind.defaults,
        **kind.selects,
        **SD,
        **places,
      }
      found = schedulers.read(config)
      given = *objects(found), found.sampler, found.grid
      name, text, other = schedulers.write(*given)
      assert other is None
      again = json.loads(text)
      assert again["_class_name"] == name
      assert schedulers.read(again) == found
      kept = json.dumps(config)
      assert schedulers.write(*given, kept) == (kind.name, kept, None)
      seen.add(name)
      number += 1
  assert seen == {*schedulers.NAMES} and number > 100


def test_a_changed_sampler_is_what_comes_out():
  kept = json.dumps({"_class_name": "DDIMScheduler", **SD})
  write = functools.partial(schedulers.write, CHAIN, parameterisation.Eps())
  for sampler, grid, name, keys in (
    ("dpmpp_2m", "karras", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    ({"name": "unipc"}, {"name": "leading", "spare": 1}, "UniPCMultistepScheduler", {}),
    ("ddim", "karras", "EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("ddim", "uniform", "DDIMScheduler", {"timestep_spacing": "trailing"}),
    # The sampler alone was changed: its class, on the nearest steps that it has.
    ("dpmpp_2m", "to_first_node", "DPMSolverMultistepScheduler", {"steps_offset": 1}),
    ("heun", "to_first_node", "HeunDiscreteScheduler", {"timestep_spacing": "leading"}),
    ({"name": "ddim", "eta": 1.0}, "leading", "EulerAncestralDiscreteScheduler", {}),
    ("ddpm", "leading", "DDPMScheduler", {"clip_sample": False}),
    ("plms", "exponential", None, {}),
    ("belm", "leading", None, {}),
    ("dpmpp_3m", "uniform", None, {}),  # without the half of their code
    ("dpmpp_2m", "align_your_steps", None, {}),
  ):
    if name is None:
      with pytest.raises(InputError, match="export with another"):
        write(sampler, grid, kept)
      continue
    found, text, other = write(sampler, grid, kept)
    assert found == name and text != kept
    assert (other is not None) == (grid in ("uniform", "to_first_node"))
    assert keys.items() <= json.loads(text).items()


@pytest.mark.parametrize(
  "name, keys",
  [
    ("DDIMScheduler", {"clip_sample": True}),
    ("DDIMScheduler", {"thresholding": True}),
    ("DDIMScheduler", {"trained_betas": [0.1]}),
    ("DDPMScheduler", {"variance_type": "fixed_large"}),
    ("PNDMScheduler", {"skip_prk_steps": False}),
    ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}),
    ("EulerDiscreteScheduler", {"timestep_type": "continuous"}),
    ("EulerDiscreteScheduler", {"sigma_max": 10.0}),
    ("EulerDiscreteScheduler", {"use_beta_sigmas": True}),
    (
      "EulerDiscreteScheduler",
      {"use_karras_sigmas": True, "use_exponential_sigmas": True},
    ),
    ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"}),
    ("DPMSolverMultistepScheduler", {"solver_type": "heun"}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"}),
    ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}),
    ("DPMSolverMultistepScheduler", {"lambda_min_clipped": -5.1}),
    ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}),
    ("UniPCMultistepScheduler", {"solver_order": 3}),
    ("UniPCMultistepScheduler", {"predict_x0": False}),
    ("UniPCMultistepScheduler", {"disable_corrector": [0]}),
    ("UniPCMultistepScheduler", {"solver_type": "bh1"}),
    ("DDIMScheduler", {"a_key_of_tomorrow": "on"}),
    ("DDIMScheduler", {"timestep_spacing": "log"}),
    ("DDIMScheduler", {"prediction_type": "flow"}),
    ("DDIMScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
    ("DDIMScheduler", {"steps_offset": "1"}),
    ("DDIMScheduler", {"num_train_timesteps": 500}),
    ("LCMScheduler", {}),
    (None, {}),
  ],
)
def test_what_is_not_honoured_is_refused_by_name(name, keys):
  with pytest.raises(InputError) as error:
    schedulers.read({"_class_name": name, **keys})
  message = str(error.value)
  assert "\n" not in message and next(iter(keys), "scheduler") in message


def test_what_a_class_does_not_read_and_what_is_off_passes():
  """As Stable Diffusion 1's own file: PNDM, with a key of DDIM."""
  own = {
    "_class_name": "PNDMScheduler",
    **SD,
    "skip_prk_steps": True,
    "steps_offset": 1,
  }
  own |= {"set_alpha_to_one": False, "clip_sample": False, "trained_betas": None}
  own |= {"_diffusers_version": "0.8", "a_key_of_tomorrow": False}
  found = schedulers.read(own)
  assert found.sampler == {"name": "plms"}
  assert found.grid == {"name": "to_first_node"}
  times = 1000 * np.asarray(build.build("grid", found.grid)(CHAIN, 4))
  np.testing.assert_allclose(times, [752, 502, 252, 2, 1], rtol=1e-5)
  idle = {"_class_name": "DDIMScheduler", "sample_max_value": 9.0, "thresholding": None}
  assert schedulers.read(idle)
  assert schedulers.read(own, "DDIMScheduler").sampler == {"name": "ddim"}


@pytest.mark.parametrize("is_rescaled", [False, True])
def test_a_scheduler_with_zero_terminal_snr_comes_back(is_rescaled):
  given = {
    "_class_name": "DDIMScheduler",
    "timestep_spacing": "trailing",
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": is_rescaled,
    "beta_end": 0.01,
  }
  found = schedulers.read(given)
  assert (found.schedule["name"] == "zero_terminal") == is_rescaled
  _, text, _ = schedulers.write(*objects(found), found.sampler, found.grid)
  assert given.items() <= json.loads(text).items()


def test_short_leaves_out_defaults_to_any_depth():
  block = {"name": "exponential", "logsnr_max": 12.0, "grid": "leading"}
  assert schedulers.short("grid", block) == {
    "name": "uniform_logsnr", "grid": {"name": "leading"}
  }  # fmt: skip
  whole = {"name": "to_first_node", "grid": {"name": "leading", "first": 0.002}}
  assert schedulers.short("grid", whole) == {"name": "to_first_node"}


def test_a_chain_of_another_length_is_not_exported():
  """diffusers gives a network the number of a step, ours 1000 times its time."""
  target = parameterisation.Eps()
  for num in (999, 1001):
    with pytest.raises(InputError, match=f"num_timesteps={num} cannot be exported"):
      schedulers.write(schedules.Linear(num), target, "ddim", "leading")
  assert schedulers.write(schedules.Linear(1000), target, "ddim", "leading")
