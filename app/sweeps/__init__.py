"""Sweeps: one file in wandb's schema, run here or by wandb's agents; each cell is one row of a table."""
