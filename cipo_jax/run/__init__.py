"""A run from its first prompt to its last checkpoint, and what it writes."""
