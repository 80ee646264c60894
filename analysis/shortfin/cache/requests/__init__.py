"""The cache of 3.7: requests allocate and free their own pages; the trie is never used."""
