"""Data: sources of documents and images, tokenizers, and batches by (seed, step)."""

from gen_jax.system import files as files
