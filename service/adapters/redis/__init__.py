"""What Redis does: wake-ups, cached lists."""
