"""Runs on disk: schema of the tables, writing, reading, and older versions."""
