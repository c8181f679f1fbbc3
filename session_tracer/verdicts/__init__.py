"""Which findings are reported, and how severe they are."""
