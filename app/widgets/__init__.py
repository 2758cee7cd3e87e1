"""Pieces that pages and notebooks share: token strips, feature cards, cached artefacts, URL state."""
