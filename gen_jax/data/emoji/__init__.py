"""Captioned emoji, a TFDS data set."""
