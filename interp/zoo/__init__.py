"""Embedded models: their weights, and the scripts that made them."""
