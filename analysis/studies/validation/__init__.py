"""Do the fixes hold? Staged validation at 2 to 32 concurrent requests, and a soak test."""
