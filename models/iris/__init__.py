"""Multimodal IRIS: item-similarity top-N with explanations."""
