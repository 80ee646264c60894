"""The only folder that imports shortfin: releases, servers, caches and hooks."""
