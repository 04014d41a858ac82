"""Pure diffusion maths: no flax, no config, no models. Liftable as it stands.

Reading order: schedule, parameterisation, corrupt, weighting, guidance, grids,
samplers, multistep, codec.
"""
