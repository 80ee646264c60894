"""Sweeps: a grid of trials, each on a fresh engine, with progress and resume.

Import from the modules, so that the child process of a trial loads only what it needs.
"""
