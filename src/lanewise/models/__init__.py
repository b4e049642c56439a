"""One file per block letter, and the model that assembles a pattern. Knows neither backends nor topology."""
