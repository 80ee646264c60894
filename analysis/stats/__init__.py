"""Statistics: frames in, numbers out. Tests and intervals rest on engines, not on requests."""
