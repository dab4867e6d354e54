"""`python -m attnfuzz N`: run N programs and print what came of it."""

import sys

from .run import main

if __name__ == "__main__":
    sys.exit(main())
