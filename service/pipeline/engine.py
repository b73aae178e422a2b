"""The parts a request works with, gathered once at start."""
