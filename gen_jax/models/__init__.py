"""One file per published architecture, one frozen Config each."""
