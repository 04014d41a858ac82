"""Generated scenes of coloured shapes: images, captions, edits and a scorer."""
