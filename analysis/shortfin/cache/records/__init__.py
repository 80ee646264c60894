"""The cache of 3.8 and 3.9: lookup, allocate, publish, release; requests hold records."""
