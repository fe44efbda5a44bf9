"""Loaded before all tests: the package must be imported before torch, which it tells how its threads wait."""

import panoptic_mapper  # noqa: F401
