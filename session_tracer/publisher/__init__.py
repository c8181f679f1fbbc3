"""Facts and the timeline, for those who ask."""
