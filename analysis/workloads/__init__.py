"""Prompts and workloads that are sent to an engine, and the check of outputs."""
