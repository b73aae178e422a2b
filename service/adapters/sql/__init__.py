"""The store over SQLite or PostgreSQL."""
