"""Gives the tests each driver that is installed, and a database on a real server for it."""

from __future__ import annotations

import pytest
from sqlalchemy import make_url

from tests.database_views.drivers import DRIVERS, Driver
from tests.twins import Twin


@pytest.fixture(params=DRIVERS, ids=lambda driver: driver.name)
def driver(request: pytest.FixtureRequest) -> Driver:
    """A driver that is installed: mysqlclient has to be compiled."""
    one: Driver = request.param
    pytest.importorskip(one.module, reason=f"{one.name} is not installed")
    return one


@pytest.fixture
def twin(driver: Driver, request: pytest.FixtureRequest) -> Twin:
    """The driver's engine and factory."""
    url = make_url(request.getfixturevalue(driver.server))
    return Twin(url.set(drivername=driver.dialect), driver.is_async)
