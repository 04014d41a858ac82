"""Linen layers without model knowledge. Axis legend: see CONTRIBUTING.md."""
