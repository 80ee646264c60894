"""The state of the KV cache as plain data, its differences, and the walk of its trie."""
