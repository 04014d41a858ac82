"""TFDS builder of the handwritten digits that come with scikit-learn."""
