"""Analysis of runs: statistics, results, comparisons, studies and plots."""
