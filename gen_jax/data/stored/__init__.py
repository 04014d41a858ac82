"""Stores of images and of latents: numbered shards of records, read by number."""
