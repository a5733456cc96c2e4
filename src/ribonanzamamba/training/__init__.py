"""From tables to weights."""
