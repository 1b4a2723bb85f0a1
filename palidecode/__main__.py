"""Run the command line: ``palidecode`` and ``python -m palidecode``."""

import signal
import sys

# Until main() receives signals, and after it, Ctrl-C ends the process without a traceback.
signal.signal(signal.SIGINT, signal.SIG_DFL)

from palidecode.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
