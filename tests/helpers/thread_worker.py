"""A worker that notes how many threads PyTorch has.

torchrun -m tests.helpers.thread_worker job.json
"""

import sys
from pathlib import Path

import torch

from k400tiny_lib.distributed.launch import Job

(Job.read(Path(sys.argv[1])).folder / "threads").write_text(str(torch.get_num_threads()))
