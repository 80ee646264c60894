"""Shared basics: errors, paths, files, child processes, wording."""
