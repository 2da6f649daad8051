"""What test_distributed.py starts on several ranks: a last collective, and the end.

    torchrun --nproc_per_node 2 tests/leaving_job.py

The processor is a busy one, see the test.
"""

import builtins
import os

import torch.distributed as dist

from agents.training.distributed import World, join_world, leave_world

if __name__ == "__main__":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one processor has all to do
    join_world()
    # Like DeepSpeed's engines: what refers to a group to the very end keeps its threads.
    builtins.kept_to_the_end = [dist.group.WORLD]
    for number in range(20):
        World.current().gather(number)
    leave_world()
