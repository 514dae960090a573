"""A kernel in the image's own Python: ``kernel.py LAYER WORDS...``, with ipykernel's packages behind the image's.

So a cell sees the packages that the training sees, in the same versions, and what only Jupyter needs beside them.
"""

import sys

layer = sys.argv.pop(1)
# The folder of this program, which Python has put first; the workspace, which ipykernel puts there itself.
sys.path[0] = ""
sys.path.append(layer)

from ipykernel import kernelapp  # noqa: E402

kernelapp.launch_new_instance()
