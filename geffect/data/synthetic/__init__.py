"""Built-in sets of invented authors and domains."""
