"""`python -m redream`: see `redream.cli`."""

import sys

from redream.cli import main

if __name__ == "__main__":
    sys.exit(main())
