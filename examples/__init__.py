"""Example applications that are traced."""
