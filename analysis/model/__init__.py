"""The counting model: artifacts, compilation, tokenizer, reference decoder, verification, training.

Import from the modules: only those that need torch, IREE or shortfin import them.
"""
