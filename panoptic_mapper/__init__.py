"""Panoptic 3D Gaussian mapping of posed RGB-D, live. Start reading in `mapper.py`.

Importing this package touches neither ROS nor CUDA.
"""

from pkgutil import extend_path

# The generated `panoptic_mapper.msg` and `.srv` and the compiled kernels live in the installed package, which
# may be another folder of sys.path than this one (a source checkout): look in all of them.
__path__ = extend_path(__path__, __name__)
__version__ = "0.1.0"
