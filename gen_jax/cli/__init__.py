"""The `gen-jax` command: one thin file per subcommand."""
