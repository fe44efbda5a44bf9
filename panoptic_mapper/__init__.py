"""Panoptic 3D Gaussian mapping of posed RGB-D, live. Start reading in `mapper.py`.

Importing this package touches neither ROS nor CUDA.
"""

import os
from pkgutil import extend_path

# OpenMP reads this when torch is imported. Its threads wait for each other by spinning otherwise, and where other
# programs want the cores too, as camera drivers do, the one that they wait for does not get to run.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# The generated `panoptic_mapper.msg` and `.srv` and the compiled kernels live in the installed package, which
# may be another folder of sys.path than this one (a source checkout): look in all of them.
__path__ = extend_path(__path__, __name__)
__version__ = "0.1.0"
