"""Loading, adapting and sampling from code models."""
