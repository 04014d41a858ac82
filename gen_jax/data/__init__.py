"""Data: sources of documents and pictures, tokenizers, and batches by (seed, step)."""
