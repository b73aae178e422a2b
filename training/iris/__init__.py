"""Training Multimodal IRIS."""
