"""Training LRMM."""
