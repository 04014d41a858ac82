"""Scenes of coloured shapes, made on the spot: images, captions, edits, a judge."""
