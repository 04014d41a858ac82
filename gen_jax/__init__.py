"""gen_jax: decoder-only transformers and text-conditioned diffusion, one trainer."""

__version__ = "0.1.0"
