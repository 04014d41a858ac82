"""Text generation: token filters, and one compiled loop over an explicit cache."""
