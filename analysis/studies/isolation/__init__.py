"""Study of notebook 06: the cache without a model, under every order of its operations."""
