"""Training of `omni-tiny`, the small checkpoint that ships with the package."""
