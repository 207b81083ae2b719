"""A worker that meets a user's mistake, and does not end.

torchrun -m tests.helpers.mistaken_worker job.json
"""

import sys
import time
from pathlib import Path

from k400tiny_lib.distributed.launch import Job

Job.read(Path(sys.argv[1])).error.write_text("lr: too large")
time.sleep(600)
