"""Facts and the timeline, for code that asks for them."""
