"""Scenes of coloured shapes, made on the spot: pictures, captions, edits, a judge."""
