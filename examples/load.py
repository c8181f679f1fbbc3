"""Visits one of the web applications over HTTP, with the mistakes that are asked for."""

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import MappingProxyType
from uuid import uuid4

import httpx

# Flask's server logs each request, and has no option for it.
_FLASK = """
import logging, flask.cli
logging.getLogger("werkzeug").setLevel("WARNING")
flask.cli.main()
"""
APPLICATIONS = {
    "fastapi": ("-m", "uvicorn", "examples.fastapi_app.main:app", "--log-level=warning"),
    "flask": ("-c", _FLASK, "--app=examples.flask_app.app", "run"),
}
VISITORS = 4
START_SECONDS = 60.0
STOP_SECONDS = 10.0
# What makes a mistake visible during a visit: a payment that takes longer than the five seconds of
# `idle-in-transaction`, and less than the minute of `leaked-session`.
SOONER = {
    "idle-in-transaction": {"SHOP_PAYMENT_SECONDS": "6"},
    "leaked-session": {"SESSION_TRACER_LEAK_AFTER_SECONDS": "10"},
}
# Where an incident is reported, unless the environment has another place.
OF_AN_INCIDENT = {
    "SESSION_TRACER_EXPORTER": "prometheus,jsonl",
    "SESSION_TRACER_JSONL_PATH": "incident.jsonl",
    "SESSION_TRACER_CONNECTION_SITES": "true",
}
# More than the connections of the application's pool.
LEAKS = 6

Visit = Callable[[httpx.Client, random.Random], httpx.Response]


def read_authors(client: httpx.Client, _: random.Random) -> httpx.Response:
    return client.get("/authors")


def read_author(client: httpx.Client, rng: random.Random) -> httpx.Response:
    return client.get(f"/authors/{rng.randint(1, 13)}")  # there are twelve


def read_prices(client: httpx.Client, rng: random.Random) -> httpx.Response:
    return client.get("/prices", params={"book": rng.sample(range(1, 37), 12)})


def change_price(client: httpx.Client, rng: random.Random) -> httpx.Response:
    return client.patch(f"/books/{rng.randint(1, 36)}", json={"price": rng.randint(500, 2000)})


def sign_up(client: httpx.Client, rng: random.Random) -> httpx.Response:
    return _sign_up_as("known" if rng.random() < 0.02 else uuid4().hex, client)


def _sign_up_as(name: str, client: httpx.Client) -> httpx.Response:
    return client.post("/customers", json={"email": f"{name}@example.org"})


def place_order(client: httpx.Client, rng: random.Random) -> httpx.Response:
    return client.post("/orders", json={"books": rng.sample(range(1, 37), 12)})


def pay(client: httpx.Client, rng: random.Random) -> httpx.Response:
    placed = place_order(client, rng)
    return client.post(f"/orders/{placed.json()['id']}/pay") if placed.is_success else placed


def read_catalogue(client: httpx.Client, _: random.Random) -> httpx.Response:
    """The first page, and no other."""
    return client.get("/catalogue")


def bestsellers(client: httpx.Client, _: random.Random) -> httpx.Response:
    return client.get("/bestsellers")


# How often, and what.
VISITS: tuple[tuple[int, Visit], ...] = (
    (8, read_authors),
    (8, read_author),
    (4, read_prices),
    (2, change_price),
    (2, sign_up),
    (3, place_order),
    (2, pay),
    (2, bestsellers),
)
WITH_THE_CATALOGUE = (*VISITS, (2, read_catalogue))


def visit(url: str, seconds: float, visits: tuple[tuple[int, Visit], ...] = VISITS) -> None:
    """Let some visitors do what visitors do, and print how often each answer was given."""
    end = time.monotonic() + seconds
    answers: Counter[str] = Counter()
    with ThreadPoolExecutor(VISITORS) as visitors:
        for answered in visitors.map(lambda seed: _visit(url, end, visits, seed), range(VISITORS)):
            answers.update(answered)
    _say("   " + ", ".join(f"{count} × {status}" for status, count in answers.most_common()))


def _visit(url: str, end: float, visits: tuple[tuple[int, Visit], ...], seed: int) -> Counter[str]:
    rng, answers = random.Random(seed), Counter[str]()
    weights, chosen = zip(*visits, strict=True)
    with client_of(url) as client:
        if seed == 0:  # whatever chance has for the others
            answers.update(str(_sign_up_as("known", client).status_code) for _ in range(2))
        while time.monotonic() < end:
            (one,) = rng.choices(chosen, weights)
            answers[str(one(client, rng).status_code)] += 1
            time.sleep(rng.uniform(0.02, 0.1))
    return answers


def incident(application: str, seconds: float) -> None:
    """A quiet time, a deployment that makes an N+1, a leak until the pool is dry, and its end."""
    port = os.environ.get("SESSION_TRACER_PROMETHEUS_PORT", "9464")
    log = {**OF_AN_INCIDENT, **os.environ}["SESSION_TRACER_JSONL_PATH"]
    _say(f"   metrics: port {port}, log: {log}")
    with running(application, "", "1.4.0", OF_AN_INCIDENT) as url:
        _say(f"1  version 1.4.0 is right: {seconds:g} quiet seconds")
        visit(url, seconds)
    with running(application, "n-plus-one,leaked-session", "1.5.0", OF_AN_INCIDENT) as url:
        _say("2  version 1.5.0 is deployed, with an N+1")
        visit(url, seconds)
        _say(f"3  {LEAKS} visitors leave the catalogue before its last page: its sessions leak")
        with ThreadPoolExecutor(1) as leaving:
            leaving.submit(_leave, url, seconds / 2 / LEAKS)
            visit(url, seconds * 2.25)
    with running(application, "", "1.5.1", OF_AN_INCIDENT) as url:
        _say("4  version 1.5.1 is deployed, and it is over")
        visit(url, seconds)


def _leave(url: str, pause: float) -> None:
    with client_of(url) as client:
        for _ in range(LEAKS):
            read_catalogue(client, random.Random())
            time.sleep(pause)


@contextmanager
def running(
    application: str,
    mistakes: str,
    version: str = "1.4.0",
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[str]:
    """Run an application on a free port; its address. The environment has precedence."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "OTEL_SERVICE_NAME": "shop",
        "OTEL_RESOURCE_ATTRIBUTES": f"service.version={version},service.instance.id={port}",
        **{
            name: value
            for mistake in mistakes.split(",")
            for name, value in SOONER.get(mistake, {}).items()
        },
        **variables,
        **os.environ,
        "SHOP_MISTAKES": mistakes,
    }
    command = [sys.executable, *APPLICATIONS[application], f"--port={port}"]
    server, url = subprocess.Popen(command, env=environment), f"http://127.0.0.1:{port}"
    try:
        _wait_for(server, url)
        yield url
    finally:
        _stop(server)


def _wait_for(server: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    with client_of(url) as client:
        while server.poll() is None and time.monotonic() < deadline:
            try:
                client.get("/prices", params={"book": 1})
            except httpx.ConnectError:
                time.sleep(0.05)
            else:
                return
    sys.exit("The application did not start; the reason is above.")


def _stop(server: subprocess.Popen[bytes]) -> None:
    """As Ctrl+C stops it: it finishes what it has begun, and reports the sessions left open."""
    server.send_signal(signal.SIGINT)
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def client_of(url: str) -> httpx.Client:
    """A client that reuses no connection: uvicorn closes them after an error."""
    closed = httpx.Limits(max_keepalive_connections=0)
    return httpx.Client(base_url=url, limits=closed, timeout=30, trust_env=False)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def main() -> int:
    options = _options()
    if options.incident:
        incident(options.application, options.seconds or 40)
    elif options.url is not None:
        try:
            visit(options.url, options.seconds or 20, WITH_THE_CATALOGUE)
        except httpx.TransportError as error:
            sys.exit(f"{options.url} does not answer: {error}")
    else:
        with running(options.application, ",".join(options.mistakes)) as url:
            visit(url, options.seconds or 20, WITH_THE_CATALOGUE)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.load", description=__doc__)
    parser.add_argument(
        "application",
        nargs="?",
        choices=sorted(APPLICATIONS),
        default="fastapi",
        help="which application is started (default: %(default)s)",
    )
    parser.add_argument(
        "mistakes",
        nargs="*",
        metavar="mistake",
        help="the mistakes that it makes, each by its finding (default: none)",
    )
    parser.add_argument(
        "--incident",
        action="store_true",
        help="quiet, a deployment with an N+1, a leak until the pool runs dry, and its end",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        help="how long the visit lasts (default: 20), or each part of the incident (40)",
    )
    parser.add_argument(
        "--url", metavar="http://127.0.0.1:8000", help="visit a running application"
    )
    return parser.parse_args()


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        sys.exit(130)
