"""The offline trainer: dataset -> features -> model -> train -> evaluate -> export."""
