"""Mixed load for twenty minutes, while the collector is frozen, stopped and started again."""
