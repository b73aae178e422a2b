"""Training DGMRec."""
