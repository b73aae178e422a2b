"""The story of a request: encode, impute, embed, rank, retrieve; ingest and recommend string them together."""
