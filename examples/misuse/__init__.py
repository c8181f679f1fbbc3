"""Each finding once: small functions of a shop, each with one mistake."""
