"""Prompts and workloads: what is sent to an engine, and the check of its outputs."""
