"""Figures about programs: statistics, results, comparison, plots."""
