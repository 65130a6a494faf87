"""Where the `infalign` command begins: Ctrl-C leaves one sentence, also while it is still read."""

from __future__ import annotations

import signal
import sys

from flows import INTERRUPTED


def main() -> None:
    """Run the command of this process."""
    try:
        from flows.cli import main as command

        command()
    except KeyboardInterrupt:
        print("infalign: interrupted.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    finally:
        # All is done and said: what is left is this process's end, which needs no traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    main()
