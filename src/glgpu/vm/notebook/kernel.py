"""A kernel in the image's own Python: ``kernel.py LAYER WORDS...``, with ipykernel's packages behind the image's.

So a cell sees the packages that the training sees, in the same versions, and what only Jupyter needs beside them.
"""

import sys

layer = sys.argv.pop(1)
# The folder of this program. The workspace comes in its place once ipykernel has all that it needs, which may be called
# like a file in there.
del sys.path[0]
sys.path.append(layer)

# Only now: it may be in the layer alone.
from ipykernel import kernelapp  # noqa: E402

kernelapp.launch_new_instance()
