"""Baselines that the models are measured beside."""
