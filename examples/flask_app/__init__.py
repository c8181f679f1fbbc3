"""The same shop's API with Flask and Flask-SQLAlchemy."""
