"""Sessions that a registry hands out: one for each thread, task or application context."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import select
from sqlalchemy.ext.asyncio import async_scoped_session
from sqlalchemy.orm import Mapped, mapped_column, scoped_session, sessionmaker

from tests.good_code.silence import only_async, only_sync, silent
from tests.library import Author, Book, authors, keep

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy.orm import Session

    from tests.twins import Twin


def names(scoped: scoped_session[Session]) -> list[str]:
    return list(scoped.scalars(select(Author.name).order_by(Author.name)))


@only_sync
def test_a_scoped_session_that_is_removed_and_used_again_in_a_loop(twin: Twin) -> None:
    async def story() -> None:
        scoped = scoped_session(twin.factory)
        with silent(scoped, sessions=19, statements=38):
            for number in range(19):
                scoped.add(Author(name=f"author {number}"))
                scoped.commit()
                assert len(names(scoped)) == number + 1
                scoped.remove()

    twin.run(story)


@only_sync
def test_a_scoped_session_that_is_removed_without_a_decision_after_reading(
    twin: Twin,
) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        scoped = scoped_session(twin.factory)
        with silent(scoped, sessions=12, statements=12):
            for _ in range(12):
                assert names(scoped) == ["author 0"]
                scoped.remove()
            scoped.remove()

    twin.run(story)


@only_sync
def test_a_scoped_session_that_is_rolled_back_and_removed_on_an_error(twin: Twin) -> None:
    def request(scoped: scoped_session[Session], name: str) -> None:
        try:
            scoped.add(Author(name=name))
            scoped.flush()
            if name == "nobody":
                raise LookupError
            scoped.commit()
        except LookupError:
            scoped.rollback()
            raise
        finally:
            scoped.remove()

    async def story() -> None:
        scoped = scoped_session(twin.factory)
        with silent(scoped, sessions=3, statements=3):
            request(scoped, "Ada")
            with pytest.raises(LookupError):
                request(scoped, "nobody")
            request(scoped, "Grace")

    twin.run(story)


@only_sync
def test_functions_that_all_use_the_scoped_session(twin: Twin) -> None:
    async def story() -> None:
        scoped = scoped_session(twin.factory)

        def register(name: str) -> Author:
            author = Author(name=name)
            scoped.add(author)
            scoped.flush()
            return author

        def publish(author: Author, title: str) -> None:
            scoped.add(Book(title=title, author_id=author.id))

        with silent(scoped, sessions=1, statements=2):
            publish(register("Ada"), "Notes")
            scoped.commit()
            scoped.remove()

    twin.run(story)


@only_sync
def test_web_threads_with_a_scoped_session(twin: Twin) -> None:
    """Each thread serves one request after another, with a session for each."""

    async def story() -> None:
        await keep(twin, *authors(1))
        scoped = scoped_session(twin.factory)

        def serve(requests: int) -> None:
            for _ in range(requests):
                scoped.add(Book(title="Notes", author_id=1))
                scoped.commit()
                names(scoped)
                scoped.remove()

        with silent(scoped, sessions=24, statements=48):
            threads = [threading.Thread(target=serve, args=(12,)) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    twin.run(story)


@only_sync
def test_a_pool_of_threads_with_a_scoped_session(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        scoped = scoped_session(twin.factory)

        def job(_: int) -> list[str]:
            try:
                return names(scoped)
            finally:
                scoped.remove()

        with silent(scoped, sessions=20, statements=20), ThreadPoolExecutor(3) as pool:
            assert list(pool.map(job, range(20))) == [["author 0"]] * 20

    twin.run(story)


@only_async
def test_an_async_scoped_session_of_each_task(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        scoped = async_scoped_session(twin.factory, asyncio.current_task)

        async def serve() -> None:
            scoped.add(Book(title="Notes", author_id=1))
            await scoped.commit()
            (await scoped.scalars(select(Author))).all()
            await scoped.remove()

        with silent(scoped, sessions=10, statements=20):
            for _ in range(4):
                await serve()
            await asyncio.gather(*(serve() for _ in range(6)))

    twin.run(story)


# Flask-SQLAlchemy: a session for each application context, removed at its end.


@pytest.fixture
def blog(tmp_path: Path) -> Iterator[tuple[Flask, Any]]:
    """The application of the quick start, with a page for users."""
    app = Flask("blog")
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path / 'blog.db'}"
    db = SQLAlchemy(app)

    class User(db.Model):  # type: ignore[name-defined,misc] # made by the extension
        id: Mapped[int] = mapped_column(primary_key=True)
        username: Mapped[str] = mapped_column(unique=True)
        email: Mapped[str]

    @app.get("/users")
    def user_list() -> list[str]:
        return list(db.session.execute(db.select(User.username)).scalars())

    @app.post("/users/create/<username>")
    def user_create(username: str) -> dict[str, Any]:
        user = User(username=username, email=f"{username}@example.com")
        db.session.add(user)
        db.session.commit()
        return {"id": user.id, "username": user.username}

    @app.get("/user/<int:user_id>")
    def user_detail(user_id: int) -> str:
        user: User = db.get_or_404(User, user_id)
        return user.username

    @app.post("/user/<int:user_id>/delete")
    def user_delete(user_id: int) -> str:
        user = db.get_or_404(User, user_id)
        db.session.delete(user)
        db.session.commit()
        return "gone"

    @app.post("/user/<int:user_id>/fail")
    def user_fail(user_id: int) -> str:
        user = db.get_or_404(User, user_id)
        user.username = "nobody"
        db.session.flush()
        raise LookupError

    @app.get("/page/<int:page>")
    def user_page(page: int) -> list[str]:
        found = db.paginate(db.select(User).order_by(User.username), page=page, per_page=3)
        return [user.username for user in found]

    @app.get("/health")
    def health() -> str:
        return "well"

    with app.app_context():
        db.create_all()
    yield app, db
    with app.app_context():
        db.engine.dispose()


def test_the_quick_start_of_flask_sqlalchemy(blog: tuple[Flask, Any]) -> None:
    app, db = blog
    with silent(db, sessions=13, statements=20):
        client = app.test_client()
        for number in range(5):
            assert client.post(f"/users/create/user{number}").json == {
                "id": number + 1,
                "username": f"user{number}",
            }
        assert client.get("/users").json == [f"user{number}" for number in range(5)]
        assert client.get("/user/2").text == "user1"
        assert client.get("/user/99").status_code == 404
        assert client.get("/page/1").json == ["user0", "user1", "user2"]
        assert client.get("/page/2").json == ["user3", "user4"]
        assert client.post("/user/1/delete").text == "gone"
        assert client.get("/user/1").status_code == 404
        assert client.get("/health").text == "well"
        assert client.get("/user/2").text == "user1"


def test_a_flask_page_that_fails_after_a_flush(blog: tuple[Flask, Any]) -> None:
    """By the time the session is removed, Flask has made a response of the error."""
    app, db = blog
    with silent(db, sessions=3, statements=4) as captured:
        client = app.test_client()
        client.post("/users/create/Ada")
        assert client.post("/user/1/fail").status_code == 500
        assert client.get("/users").json == ["Ada"]
    assert [summary.outcome for summary in captured.sessions] == ["committed", "failed", "closed"]


def test_a_flask_request_that_tears_its_scoped_session_down(blog: tuple[Flask, Any]) -> None:
    """The way of Flask's own documentation, without the extension."""
    extended, db = blog
    app = Flask("diary")
    with extended.app_context():
        scoped = scoped_session(sessionmaker(db.engine))
    (user,) = [mapper.class_ for mapper in db.Model.registry.mappers]

    @app.teardown_appcontext
    def shutdown_session(exception: BaseException | None = None) -> None:
        scoped.remove()

    @app.post("/users/<name>")
    def create(name: str) -> str:
        scoped.add(user(username=name, email=f"{name}@example.com"))
        scoped.flush()
        if name == "nobody":
            raise LookupError
        scoped.commit()
        return "created"

    with silent(scoped, sessions=3, statements=3):
        client = app.test_client()
        assert client.post("/users/Ada").text == "created"
        assert client.post("/users/nobody").status_code == 500
        assert client.post("/users/Grace").text == "created"


def test_an_application_context_that_a_script_pushes(blog: tuple[Flask, Any]) -> None:
    app, db = blog
    (user,) = [mapper.class_ for mapper in db.Model.registry.mappers]
    with silent(db, sessions=2, statements=4):
        with app.app_context():
            db.session.add_all(
                user(username=name, email=f"{name}@example.com") for name in ("Ada", "Grace")
            )
            db.session.commit()
            assert len(db.session.scalars(db.select(user)).all()) == 2
        with app.app_context():
            found = db.session.scalar(db.select(user).filter_by(username="Ada"))
            assert found is not None
            found.email = "ada@example.org"
            db.session.commit()
