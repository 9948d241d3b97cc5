"""One run and its directory."""
