"""The fuzzer is a package beside its tests; tests are imported by path, so it is put on the path here."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
