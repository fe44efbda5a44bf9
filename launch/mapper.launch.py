"""Starts the mapping node, and RViz with rviz:=true."""

from pathlib import Path
from typing import Any

import yaml
from ament_index_python.packages import get_package_share_path
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription

# Launch argument: the parameter of the node that it sets. What is left empty keeps what the params_file says.
SHORTCUTS = {
    "color_topic": "topics.color",
    "depth_topic": "topics.depth",
    "camera_info_topic": "topics.camera_info",
    "pose_topic": "topics.pose",
    "pose_source": "pose_source",
    "segmenter": "segmenter.name",
    "map_frame": "map_frame",
    "device": "device",
}


def settings_of(preset: str) -> dict[str, Any]:
    """Parameters of a file in config/ that holds settings of the mapper, by their dotted names; none for no preset."""
    settings: dict[str, Any] = {}

    def add(name: str, value: Any) -> None:
        if not isinstance(value, dict):
            settings[name] = value
            return
        for key, inner in value.items():
            add(f"{name}.{key}" if name else key, inner)

    add("", yaml.safe_load((config_folder() / f"{preset}.yaml").read_text()) if preset else {})
    return settings


def config_folder() -> Path:
    return get_package_share_path("panoptic_mapper") / "config"


def mapper_node(context: LaunchContext) -> list[Node]:
    given = {name: LaunchConfiguration(argument).perform(context) for argument, name in SHORTCUTS.items()}
    overrides: dict[str, Any] = {name: value for name, value in given.items() if value}
    overrides["use_sim_time"] = LaunchConfiguration("use_sim_time").perform(context).lower() == "true"
    preset = settings_of(LaunchConfiguration("preset").perform(context))
    return [
        Node(
            package="panoptic_mapper",
            executable="mapper_node",
            name="panoptic_mapper",
            output="screen",
            parameters=[LaunchConfiguration("params_file").perform(context), preset, overrides],
        )
    ]


def generate_launch_description() -> LaunchDescription:
    config = config_folder()
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        arguments=["-d", str(config / "mapper.rviz")],
        condition=IfCondition(LaunchConfiguration("rviz")),
    )
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "params_file", default_value=str(config / "default.yaml"), description="Parameters of the node."
            ),
            DeclareLaunchArgument(
                "preset",
                default_value="",
                choices=["", "latency", "quality"],
                description="Settings for a camera's rate on a GPU, or for more optimisation than a robot can do.",
            ),
            DeclareLaunchArgument("use_sim_time", default_value="false", description="Follow /clock, for bags."),
            DeclareLaunchArgument("rviz", default_value="false", description="Start RViz too."),
            *(
                DeclareLaunchArgument(argument, default_value="", description=f"Sets the parameter {name}.")
                for argument, name in SHORTCUTS.items()
            ),
            OpaqueFunction(function=mapper_node),
            rviz,
        ]
    )
