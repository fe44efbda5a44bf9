"""Plays a bag into the mapping node: `ros2 launch panoptic_mapper replay.launch.py bag:=PATH [rate:=1.0]`."""

from ament_index_python.packages import get_package_share_path
from launch.actions import DeclareLaunchArgument, ExecuteProcess, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

from launch import LaunchDescription


def generate_launch_description() -> LaunchDescription:
    share = get_package_share_path("panoptic_mapper")
    mapper = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(share / "launch/mapper.launch.py")),
        launch_arguments={"use_sim_time": "true", "rviz": LaunchConfiguration("rviz")}.items(),
    )
    # Our own player rather than `ros2 bag play`: it waits for the node before it starts, and gives Fast DDS the shared
    # memory that images need.
    player = ExecuteProcess(
        cmd=[
            "panoptic-mapper",
            "play",
            LaunchConfiguration("bag"),
            "--rate",
            LaunchConfiguration("rate"),
            "--wait-s",
            "60",
        ],
        output="screen",
    )
    return LaunchDescription(
        [
            DeclareLaunchArgument("bag", description="Folder of the rosbag2."),
            DeclareLaunchArgument("rate", default_value="1.0", description="1 = as fast as it was recorded."),
            DeclareLaunchArgument("rviz", default_value="false", description="Start RViz too."),
            mapper,
            player,
        ]
    )
