"""Loaded before all tests: the package must be imported before torch, which it tells how its threads wait."""

import panoptic_mapper  # noqa: F401

# isort: split
import pytest
from operator_devices import ON_CUDA

from panoptic_mapper import ops


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=ON_CUDA)])
def device(request: pytest.FixtureRequest) -> str:
    """Each device on which compiled operators run in turn, with the operators loaded."""
    ops.load()
    return request.param
