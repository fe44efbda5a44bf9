"""`python -m panoptic_mapper` is `panoptic-mapper`."""

from panoptic_mapper.cli import main

main()
