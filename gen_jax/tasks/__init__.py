"""Tasks: a Task turns parameters and a batch into a loss."""
