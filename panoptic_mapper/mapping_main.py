"""The process of the mapper, as `mapping_process` starts it."""

from __future__ import annotations

import sys

from panoptic_mapper import child_process
from panoptic_mapper.mapping_messages import NUM_FRAMES


def main(connection_fd: int, *fds: int) -> None:
    """Serves until the connection ends, which ends the process, too."""
    connection, memory = child_process.begin(connection_fd, fds)
    from panoptic_mapper.mapping_child import MappingChild  # torch takes seconds, in which Ctrl-C may come

    child = MappingChild(connection, memory[:NUM_FRAMES], memory[NUM_FRAMES:])
    child_process.receive_until_the_end(connection, child.take)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
