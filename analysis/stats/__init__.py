"""Rates, tests and intervals whose unit is the engine; frames in, numbers out."""
