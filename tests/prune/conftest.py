import sys
from pathlib import Path

# For `tiny.py`, which two spawned workers import as well.
sys.path.append(str(Path(__file__).parent))
