"""`python -m infalign STAGE …`: one stage, by a warm process where there is one."""

from __future__ import annotations

import sys

from infalign.processes import warm
from infalign.processes.one_stage import PARAMS, main, parse_arguments

if __name__ == "__main__":
    chosen = parse_arguments(None)
    code = warm.run_there(chosen.stage, sys.argv[1:]) if chosen.params == PARAMS else None
    sys.exit(main() if code is None else code)
