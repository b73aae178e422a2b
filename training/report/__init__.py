"""`lacuna report`: raw results as one HTML page that needs nothing else (`page`), and tables that the docs share."""
