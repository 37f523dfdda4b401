"""`python -m redream`: see `redream.cli`."""

import os
import signal
import sys
import threading


def _end(number: int, frame: object) -> None:
    os.write(2, b"Stopped at once; nothing was done.\n")
    os._exit(130)


if __name__ == "__main__":
    # Until the command begins: an interrupted import may raise anything.
    before = signal.signal(signal.SIGINT, _end)
    from redream.cli import main

    signal.signal(signal.SIGINT, before)
    status = main()
    if threading.active_count() > 1:  # Python would wait for a thread that waits for the network
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)
