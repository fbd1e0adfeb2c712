"""Trained weights: those that come with the package, and those that a training run keeps in its folder."""
