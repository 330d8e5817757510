"""ILF: teaching code models with language feedback (Chen et al. 2023)."""

__version__ = "1.0.0"
