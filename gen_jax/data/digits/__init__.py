"""The handwritten digits that come with scikit-learn, as a data set of TFDS."""

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
