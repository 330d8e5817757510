"""The local web page on which people write feedback on a run's failing programs (mode=annotate)."""
