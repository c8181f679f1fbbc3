"""What tracing a session costs, as ratios to the same work untraced."""
