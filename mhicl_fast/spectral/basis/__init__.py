"""Weights in a shared basis that is not known: joint diagonalisation, semi-singular values, and how far from it."""
