"""LRMM: rating prediction with missing modalities."""
