"""Database schema, by version."""
