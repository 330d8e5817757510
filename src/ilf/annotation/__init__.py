"""The local web page on which people write feedback on the failing programs of a run (mode=annotate)."""
