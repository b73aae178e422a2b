"""Schemas of the HTTP API: what it takes (`requests`) and what it answers (`responses`)."""
