"""What test_distributed.py starts on several ranks: a last collective, and the end.

    torchrun --nproc_per_node 2 tests/leaving_job.py

The processor is a busy one, see the test.
"""

import builtins
import os

import torch.distributed as dist

from agents.training.distributed import World, destroy_process_group, init_process_group

if __name__ == "__main__":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one processor has all to do
    init_process_group()
    # Like DeepSpeed's engines: what refers to a group to the very end keeps its threads.
    builtins.kept_to_the_end = [dist.group.WORLD]
    for number in range(20):
        World.current().gather(number)
    destroy_process_group()
