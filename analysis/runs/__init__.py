"""A run on disk: schema of its tables, writing, reading, and older versions."""
