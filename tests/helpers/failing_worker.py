"""A worker that notes where the workers meet, and fails before its first restart.

torchrun -m tests.helpers.failing_worker job.json
"""

import os
import sys
from pathlib import Path

from k400tiny_lib.distributed.launch import Job

with (Job.read(Path(sys.argv[1])).folder / "ports").open("a") as note:
    note.write(os.environ["MASTER_PORT"] + "\n")
sys.exit(os.environ["TORCHELASTIC_RESTART_COUNT"] == "0")
