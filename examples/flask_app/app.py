"""The application: `flask --app examples.flask_app.app run`."""

from flask import Flask
from sqlalchemy import exc

from examples.flask_app import mistakes, views
from examples.flask_app.models import db, fill_shelves
from session_tracer import instrument
from session_tracer.wsgi import WorkMiddleware


def create_app() -> Flask:
    """The application, with its tables."""
    app = Flask(__name__)
    app.config.from_object("examples.flask_app.config")
    app.wsgi_app = WorkMiddleware(app.wsgi_app)  # type: ignore[method-assign] # as Flask documents
    db.init_app(app)
    with app.app_context():
        instrument(db, name="shop")
        db.create_all()
        fill_shelves()
    app.register_blueprint(views.shop)
    app.register_error_handler(exc.TimeoutError, no_connection)
    mistakes.make(app, app.config["MISTAKES"])
    return app


def no_connection(_: Exception) -> tuple[dict[str, str], int]:
    """No connection of the pool was free in time."""
    return {"detail": "busy"}, 503
