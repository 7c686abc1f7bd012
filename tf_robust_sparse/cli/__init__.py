"""Entry points: absl-flag scripts around the package."""
