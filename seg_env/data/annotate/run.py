"""Annotating all shards, in one process or several."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple

from seg_env.data.annotate.annotator import Annotator
from seg_env.data.annotate.job import Job
from seg_env.data.annotate.merge import merge
from seg_env.data.annotate.nouns import Shard
from seg_env.data.annotate.plan import check_plan, is_done, part_of, plan_of, record_plan
from seg_env.data.annotate.shard_work import annotate_shard
from seg_env.data.annotate.stages import ImageSource, load_stage

_LOOK_EVERY = 0.25
"""Seconds between two looks at what the workers have done."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    shards: int
    """Shards of this part that are done, those of earlier runs included."""
    of: int
    """Shards of this part."""
    pictures: int
    """Pictures that this run has annotated."""


OnProgress = Callable[[Progress], object]


def annotate(
    job: Job,
    output: str | os.PathLike[str],
    *,
    workers: int = 1,
    part: tuple[int, int] = (0, 1),
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Annotate the shards of a source that are not done yet, and join all that are.

    Running it again goes on where it stopped, however it was stopped: shards that are done stay,
    the others are begun anew. Machines that share a folder take parts ``(0, n)`` to ``(n - 1, n)``;
    those that do not copy what they wrote below ``shards`` into one folder, and run it there.

    Args:
        job: What is to be done.
        output: Folder of the run; holds the records in the end.
        workers: Processes, 1 or more; each loads the models and takes shards of its own.
        part: Number of this machine, from 0, and how many there are.
        on_progress: Told about progress several times a second.

    Returns:
        The manifest: counts over everything that is done, by whichever machine.

    Raises:
        ValueError: The job cannot be done, or the folder holds another one.
        OSError: A disk or a server failed; what is done stays.
    """
    if workers < 1:
        raise ValueError(f"workers={workers}; use a whole number from 1")
    root = Path(output)
    source: ImageSource = load_stage(job.source, ImageSource)
    shards = source.shards()
    if any(shard.number != place for place, shard in enumerate(shards)):
        raise ValueError(f"the source {job.source!r} must number its shards 0, 1, 2, ...")
    plan = plan_of(job, shards)
    check_plan(root, plan)  # before models are loaded for nothing
    mine = part_of(shards, part)
    missing = [shard for shard in mine if not is_done(root, shard.number)]
    watch = _Watch(on_progress, len(mine) - len(missing), len(mine))
    if workers > 1 and len(missing) > 1:
        _in_processes(job, root, plan, missing, min(workers, len(missing)), watch)
    elif missing:
        annotator = Annotator(job)
        record_plan(root, plan)  # a stage that cannot be built must not claim the folder
        for shard in missing:
            annotate_shard(job, source, annotator, shard, root, watch.add_pictures)
            watch.shard_done()
    else:
        record_plan(root, plan)  # all was copied here from other machines
    watch.report()
    return merge(root)


class _Watch:
    """Collects progress and passes it on."""

    def __init__(self, on_progress: OnProgress | None, shards: int, of: int) -> None:
        self._on_progress = on_progress
        self.shards, self.of, self.pictures = shards, of, 0

    def add_pictures(self, count: int) -> None:
        self.pictures += count
        self.report()

    def shard_done(self) -> None:
        self.shards += 1

    def report(self) -> None:
        if self._on_progress is not None:
            self._on_progress(Progress(self.shards, self.of, self.pictures))


def _in_processes(
    job: Job,
    root: Path,
    plan: dict[str, Any],
    shards: Sequence[Shard],
    workers: int,
    watch: _Watch,
) -> None:
    context = get_context("spawn")  # models and threads do not survive a fork
    shared = _Shared(context.Value("q", 0), context.Event(), plan)
    before = watch.shards
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_begin, initargs=(job, workers, shared)
    ) as pool:
        futures = {pool.submit(_work, str(root), shard) for shard in shards}
        pending = set(futures)
        try:
            while pending:
                done, pending = wait(pending, _LOOK_EVERY, FIRST_EXCEPTION)
                for future in done:
                    future.result()
                watch.shards = before + len(futures) - len(pending)
                watch.pictures = shared.pictures.value
                watch.report()
        except BaseException:
            shared.stop.set()  # or the pool would wait until every worker has done its shard
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Shared(NamedTuple):
    """What all processes see."""

    pictures: Any
    """A counter of pictures that have been annotated."""
    stop: Any
    """An event: another process failed."""
    plan: dict[str, Any]
    """What is recorded by the first of them that could build the stages."""


_worker: tuple[Job, _Shared]
"""What a worker process was given."""


def _begin(job: Job, workers: int, shared: _Shared) -> None:
    """Prepare a worker process: it leaves with its parent, and shares the cores."""
    global _worker
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    # Libraries read this when they are imported, which the stages do.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    _worker = (job, shared)


@cache
def _load(root: str) -> tuple[ImageSource, Annotator]:
    """The stages of a worker process, loaded with its first shard: here errors find their way."""
    job, shared = _worker
    loaded = load_stage(job.source, ImageSource), Annotator(job)
    record_plan(Path(root), shared.plan)
    return loaded


def _leave_with_parent() -> None:
    """End this process when the one that started it has been killed: nobody would ever tell it."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _work(root: str, shard: Shard) -> None:
    job, shared = _worker
    source, annotator = _load(root)

    def count(new: int) -> None:
        with shared.pictures.get_lock():
            shared.pictures.value += new
        if shared.stop.is_set():
            raise InterruptedError("another worker failed")

    annotate_shard(job, source, annotator, shard, Path(root), count)
