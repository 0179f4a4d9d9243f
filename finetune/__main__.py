"""`python -m finetune ...` is `omni finetune ...`, for programs that start modules."""

import sys

from omni.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["finetune"]
    main()
