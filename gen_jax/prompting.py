"""Old names of `gen_jax.inference`, for one release more."""

from gen_jax.inference.image_generator import ImageGenerator as Painter
from gen_jax.inference.image_generator import latent_shape, to_uint8
from gen_jax.inference.text_generator import Sample
from gen_jax.inference.text_generator import TextGenerator as Writer
from gen_jax.rng import sample_keys as keys

__all__ = ("Painter", "Sample", "Writer", "keys", "latent_shape", "to_uint8")
