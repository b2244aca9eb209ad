"""Figures of the study, one function each."""
