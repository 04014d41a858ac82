"""Sweeps: many runs of one config, and what they say together.

An arm is a dict {dotted config key: value}, a space a list of arms. A sweep.py builds
its space from the five functions here.
"""

from gen_jax.sweeps.space import chain, fixed, product, values, zip_

__all__ = ("chain", "fixed", "product", "values", "zip_")
