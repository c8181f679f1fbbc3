"""Which line of the application, which thread or task, and for what work."""
