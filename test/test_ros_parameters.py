"""Parameters are the config: names, defaults, descriptions, ranges, and no unknown ones."""

from dataclasses import dataclass

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")
import rclpy
from rclpy.node import Node
from rclpy.parameter import Parameter

from panoptic_mapper.config import Config, param, section
from panoptic_mapper.ros.parameters import read_parameters

pytestmark = pytest.mark.ros


@dataclass(frozen=True)
class InnerConfig(Config):
    width_m: float = param(0.5, "A width, m.", gt=0, le=2)
    kind: str = param("soft", "A kind.", choices=("soft", "hard"))


@dataclass(frozen=True)
class OuterConfig(Config):
    count: int = param(3, "A count.", ge=1)
    is_on: bool = param(False, "A switch.")
    pose: tuple[float, ...] = param((1.0, 2.0), "Some numbers.")
    inner: InnerConfig = section(InnerConfig)


@pytest.fixture
def make_node():
    context, nodes = rclpy.Context(), []
    rclpy.init(context=context)

    def make(**values) -> Node:
        overrides = [Parameter(name.replace("__", "."), value=value) for name, value in values.items()]
        node = Node(
            "parameters_test",
            context=context,
            parameter_overrides=overrides,
            automatically_declare_parameters_from_overrides=True,
            start_parameter_services=False,
        )
        nodes.append(node)
        return node

    yield make
    for node in nodes:
        node.destroy_node()
    rclpy.shutdown(context=context)


def test_defaults_are_those_of_the_dataclass(make_node):
    assert read_parameters(make_node(), OuterConfig) == OuterConfig()


def test_given_values_win_and_whole_numbers_pass_for_floats(make_node):
    node = make_node(count=7, is_on=True, pose=[3.0], inner__width_m=1, inner__kind="hard", use_sim_time=False)
    expected = OuterConfig(count=7, is_on=True, pose=(3.0,), inner=InnerConfig(width_m=1.0, kind="hard"))
    assert read_parameters(node, OuterConfig) == expected


def test_descriptions_ranges_and_read_only(make_node):
    node = make_node(count=2)
    read_parameters(node, OuterConfig)
    count, width, kind = node.describe_parameters(["count", "inner.width_m", "inner.kind"])
    assert count.description == "A count."
    assert count.integer_range[0].from_value == 1
    assert (width.floating_point_range[0].from_value, width.floating_point_range[0].to_value) == (0.0, 2.0)
    assert kind.description == "A kind. One of: soft, hard."
    (result,) = node.set_parameters([Parameter("count", value=5)])
    assert not result.successful
    assert "read-only" in result.reason


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"counts": 3}, "unknown parameter 'counts'; did you mean 'count'"),
        ({"inner__widht_m": 1.0}, "did you mean 'inner.width_m'"),
        ({"count": 0}, "count"),
        ({"count": 2.5}, "count: expected int"),
        ({"inner__width_m": 0.0}, "width_m: expected a value > 0"),
        ({"inner__width_m": 2.5}, "inner.width_m"),
        ({"inner__kind": "wet"}, "expected one of soft, hard, got 'wet'"),
        ({"is_on": "yes"}, "is_on: expected bool"),
    ],
)
def test_wrong_parameters_are_named(make_node, values, message):
    with pytest.raises(ValueError, match=message):
        read_parameters(make_node(**values), OuterConfig)
