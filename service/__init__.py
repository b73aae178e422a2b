"""The online service: request -> encode -> impute -> embed -> index -> rank -> response."""
