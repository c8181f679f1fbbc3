"""`python -m session_tracer`, the same as the command `session-tracer`."""

import sys

from session_tracer.cli import main

if __name__ == "__main__":
    sys.exit(main())
