"""cachelab: why an LLM engine's paged KV cache goes wrong under concurrent requests."""
