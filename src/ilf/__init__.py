"""Imitation learning from Language Feedback (ILF) for code models (Chen et al. 2023)."""

__version__ = "1.0.0"
