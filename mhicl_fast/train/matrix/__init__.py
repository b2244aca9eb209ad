"""Noise-free gradient flow of full weights: the velocity, an adaptive solver, checkpoints, and linearised stability."""
