"""The cache of 3.1 to 3.6: a request holds its pages with an allocation object."""
