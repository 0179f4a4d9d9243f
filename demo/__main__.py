"""`python -m demo ...` is `omni demo ...`, for programs that start modules."""

import sys

from demo.cli import register
from omni.cli import app, main

if __name__ == "__main__":
    register(app)
    sys.argv[1:1] = ["demo"]
    main()
