"""Snapshots: the state of the KV cache as plain data, differences, and trie traversal."""
