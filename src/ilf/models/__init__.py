"""Loads, adapts and samples from code models."""
