"""The notebooks' way to the modules at the repository's root.

A notebook's kernel starts in this folder, so its first line, `from startup import ...`, finds this file: it puts the
root on the path, and the root's own `startup` in its place.
"""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
del sys.modules["startup"]
importlib.import_module("startup")
