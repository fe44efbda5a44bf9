"""A configuration as ROS parameters: declared with descriptions and ranges, read back into the dataclass."""

from __future__ import annotations

import difflib
from typing import Any, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

from panoptic_mapper.config import Config, Parameter, config_from_dict, iter_parameters, set_dotted

ConfigT = TypeVar("ConfigT", bound=Config)

FOREIGN_PREFIXES = ("qos_overrides.", "start_type_description_service", "use_sim_time")  # rclpy's own
MAX_INT64, MAX_FLOAT64 = 2**63 - 1, 1.7976931348623157e308


def read_parameters(node: Node, config_type: type[ConfigT]) -> ConfigT:
    """Declares every leaf of `config_type` on the node, read-only, and builds the config from their values.

    The node must have been made with `automatically_declare_parameters_from_overrides=True`, so that the names given
    by a parameter file are known.

    Raises:
        ValueError: a parameter was given that does not exist (the closest one is named), has the wrong type, or is out
            of its range.
    """
    parameters = {p.name: p for p in iter_parameters(config_type)}
    given = [name for name in node.get_parameters_by_prefix("") if not name.startswith(FOREIGN_PREFIXES)]
    for name in given:
        if name not in parameters:
            close = difflib.get_close_matches(name, parameters, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise ValueError(f"unknown parameter '{name}'{hint}")
    values: dict[str, Any] = {}
    for name, parameter in parameters.items():
        try:
            if name in given:
                node.set_descriptor(name, describe(parameter))
            else:
                node.declare_parameter(name, _plain(parameter.default), describe(parameter))
        except Exception as error:  # rclpy has several types for one meaning
            raise ValueError(f"parameter '{name}': {error}") from error
        set_dotted(values, name, node.get_parameter(name).value)
    return config_from_dict(config_type, values, "parameters")


def describe(parameter: Parameter) -> ParameterDescriptor:
    """The descriptor that `ros2 param describe` shows."""
    choices = f" One of: {', '.join(parameter.choices)}." if parameter.choices else ""
    # dynamic_typing lets `1` stand for `1.0`, as in our YAML files; the config checks the types itself.
    descriptor = ParameterDescriptor(description=parameter.help + choices, read_only=True, dynamic_typing=True)
    low, high = parameter.minimum, parameter.maximum
    if low is None and high is None:
        return descriptor
    if isinstance(parameter.default, int):
        whole_low, whole_high = -MAX_INT64 if low is None else int(low), MAX_INT64 if high is None else int(high)
        descriptor.integer_range = [IntegerRange(from_value=whole_low, to_value=whole_high)]
    else:
        from_value, to_value = -MAX_FLOAT64 if low is None else float(low), MAX_FLOAT64 if high is None else float(high)
        descriptor.floating_point_range = [FloatingPointRange(from_value=from_value, to_value=to_value)]
    return descriptor


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
