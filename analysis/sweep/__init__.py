"""A grid of trials, each a fresh engine; progress, resume, and a row for every end of a trial.

Import from the modules: the child process of a trial loads only its own side.
"""
