"""Data: sources of documents and pictures, tokenizers, and batches by (seed, step)."""

from gen_jax import files as files  # by this name, too, for those who import it so
