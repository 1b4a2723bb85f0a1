"""Run the command line: ``python -m palidecode``."""

import sys

from palidecode.cli import main

if __name__ == "__main__":
    sys.exit(main())
