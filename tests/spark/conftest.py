"""Tests in this folder may run their own functions in tasks."""

from __future__ import annotations

import pytest

from spark_fixtures import send_by_value


@pytest.fixture(scope="module", autouse=True)
def _functions_of_tests(request: pytest.FixtureRequest) -> None:
    send_by_value(request.module)
