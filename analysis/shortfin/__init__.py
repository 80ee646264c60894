"""All that knows shortfin: its releases, its servers, its caches, and how they are hooked."""
