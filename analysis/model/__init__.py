"""Models: artifacts, compilation, tokenizer, reference decoder, verification, training, imports.

Import from the modules: only those that need torch, IREE or shortfin import them.
"""
