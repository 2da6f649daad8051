"""Annotating a source: all stages, shard by shard, in one process or several, joined at the end.

A shard is annotated into a folder that gets its name when everything is in it, so a run that was
stopped in any way goes on where it was. What comes out depends on the job alone, not on the number
of workers and machines.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple

from seg_env.data.annotate.describing import clean_expression
from seg_env.data.annotate.job import (
    MANIFEST,
    PLAN,
    SHARDS,
    Job,
    Tally,
    build_plan,
    check_plan,
    part_of,
    record_plan,
    shard_folder,
    stale_paths,
    temporary_path,
)
from seg_env.data.annotate.sources import open_image
from seg_env.data.annotate.stages import (
    Box,
    DecodedImage,
    Describer,
    Detection,
    Detector,
    Filter,
    Found,
    ImageSource,
    RawImage,
    Rejected,
    Segmenter,
    Shard,
    When,
    load_stage,
)
from seg_env.data.annotate.writers import WRITERS


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    shards: int
    """Shards of this part that are done, those of earlier runs included."""
    of: int
    """Shards of this part."""
    images: int
    """Images that this run has annotated."""


def annotate(
    job: Job,
    output: str | os.PathLike[str],
    *,
    workers: int = 1,
    part: tuple[int, int] = (0, 1),
    on_progress: Callable[[Progress], object] | None = None,
) -> dict[str, Any]:
    """Annotate the shards of a source that are not done yet, and join all that are.

    Machines that share a folder take parts ``(0, n)`` to ``(n - 1, n)``; those that do not copy
    what they wrote below ``shards`` into one folder, and run it there.

    Args:
        job: What is to be done.
        output: Folder of the run; holds the records in the end.
        workers: Processes; each loads the models and takes shards of its own.
        part: Number of this machine, from 0, and how many there are.
        on_progress: Called several times a second.

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
    plan = build_plan(job, shards)
    check_plan(root, plan)  # before models are loaded for nothing
    mine = part_of(shards, part)
    missing = [shard for shard in mine if not shard_folder(root, shard.number).exists()]
    if not missing:
        record_plan(root, plan)  # all was copied here from other machines
    workers = min(workers, len(missing))
    if workers > 1:
        steps = _in_processes(job, root, plan, missing, workers)
    else:
        steps = _in_this_process(job, root, plan, missing, source)
    with closing(steps):
        for done, images in steps:
            if on_progress is not None:
                on_progress(Progress(len(mine) - len(missing) + done, len(mine), images))
    return _merge(root, plan)


Steps = Generator[tuple[int, int], None, None]
"""Shards that are done, and images that have been annotated so far."""


def _in_this_process(
    job: Job, root: Path, plan: dict[str, Any], shards: Sequence[Shard], source: ImageSource
) -> Steps:
    images = 0
    if shards:
        annotator = Annotator(job, source)
        record_plan(root, plan)  # a stage that cannot be built must not claim the folder
        for done, shard in enumerate(shards):
            for new in annotator.annotate_shard(shard, root):
                images += new
                yield done, images
    yield len(shards), images


def _in_processes(
    job: Job, root: Path, plan: dict[str, Any], shards: Sequence[Shard], workers: int
) -> Steps:
    context = get_context("spawn")  # models and threads do not survive a fork
    shared = _Shared(job, str(root), plan, context.Value("q", 0), context.Event())
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_begin_worker, initargs=(shared, workers)
    ) as pool:
        pending = {pool.submit(_work, shard) for shard in shards}
        try:
            while pending:
                done, pending = wait(pending, 0.25, FIRST_EXCEPTION)
                for future in done:
                    future.result()
                yield len(shards) - len(pending), shared.images.value
        except BaseException:
            shared.stop.set()  # or the pool would wait until every worker has done its shard
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Shared(NamedTuple):
    """What all processes are given."""

    job: Job
    root: str
    plan: dict[str, Any]
    images: Any
    """A counter of images that have been annotated."""
    stop: Any
    """An event: another process failed."""


_shared: _Shared
"""What this process was given, if it is a worker."""


def _begin_worker(shared: _Shared, workers: int) -> None:
    """Prepare a worker process: it ends with its parent, and shares the cores."""
    global _shared
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    # Libraries read this when they are imported, which the stages do.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    _shared = shared


def _exit_with_parent() -> None:
    """End this process when the one that started it has been killed."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


@cache
def _load_annotator() -> Annotator:
    """The annotator of a worker process, loaded with its first shard to have errors reported."""
    annotator = Annotator(_shared.job, load_stage(_shared.job.source, ImageSource))
    record_plan(Path(_shared.root), _shared.plan)
    return annotator


def _work(shard: Shard) -> None:
    for new in _load_annotator().annotate_shard(shard, Path(_shared.root)):
        with _shared.images.get_lock():
            _shared.images.value += new
        if _shared.stop.is_set():
            raise InterruptedError("another worker failed")


Batch = list[list[Found]]
"""The objects of each image."""


class Annotator:
    """Finds, cuts out, describes and sorts the objects of images."""

    def __init__(self, job: Job, source: ImageSource) -> None:
        """Load the stages with their models."""
        self._job, self._source = job, source
        self._detector: Detector = load_stage(job.detector, Detector)
        self._segmenter: Segmenter = load_stage(job.segmenter, Segmenter)
        self._describer: Describer = load_stage(job.describer, Describer)
        self._filters: list[Filter] = [load_stage(text, Filter) for text in job.filters]

    def annotate_shard(self, shard: Shard, output: Path) -> Iterator[int]:
        """Annotate a shard into a folder of its own; yields the number of images of each batch."""
        final = shard_folder(output, shard.number)
        for old in stale_paths(final):
            shutil.rmtree(old, ignore_errors=True)
        folder = temporary_path(final)
        folder.mkdir()
        tally = Tally()
        numbered = enumerate(self._decode(shard, tally))
        with closing(WRITERS[self._job.container](folder, self._job, final.name, tally)) as writer:
            while taken := list(islice(numbered, self._job.batch_size)):
                batch = [(number, each) for number, each in taken if isinstance(each, DecodedImage)]
                found = self._annotate([image for _, image in batch], tally) if batch else []
                with tally.timed("write"):
                    for (number, image), objects in zip(batch, found, strict=True):
                        tally.annotated += bool(objects)
                        if objects:
                            writer.write(number, image, objects)
                yield len(batch)
        manifest = {"shard": shard.name, **tally.to_json()}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        try:
            os.rename(folder, final)
        except OSError:  # another process was faster; its folder stays, for both hold the same
            if not final.exists():
                raise
            shutil.rmtree(folder)

    def _decode(self, shard: Shard, tally: Tally) -> Iterator[DecodedImage | Rejected]:
        """Everything in a shard in its order, so that records can be named by their place."""
        raws = self._source.read(shard)
        while True:
            image: RawImage | DecodedImage | Rejected | None
            with tally.timed("read"):
                image = next(raws, None)
                if image is not None and not isinstance(image, Rejected):
                    image = open_image(image, self._job.least_side, self._job.most_pixels)
            if image is None:
                return
            if isinstance(image, Rejected):
                tally.rejected[image.reason] += 1
            else:
                tally.read += 1
            yield image

    def _annotate(self, images: Sequence[DecodedImage], tally: Tally) -> Batch:
        """The objects of images that pass all filters, each with mask and expression."""
        found = self._detect(images, tally)
        found = self._filter("detector", images, found, tally)
        found = self._segment(images, found, tally)
        found = self._filter("segmenter", images, found, tally)
        found = self._describe(images, found, tally)
        return self._filter("describer", images, found, tally)

    def _detect(self, images: Sequence[DecodedImage], tally: Tally) -> Batch:
        with tally.timed("detect"):
            boxes = self._detector.detect(images)
        _check_length("detector", boxes, images)
        batch: Batch = []
        for image, some in zip(images, boxes, strict=True):
            tally.detected += len(some)
            ranked = sorted(
                some, key=lambda each: -each.score if math.isfinite(each.score) else math.inf
            )
            tally.dropped["too many objects"] += len(ranked[self._job.most_objects :])
            clipped = [_clip(each, image.size) for each in ranked[: self._job.most_objects]]
            tally.dropped["no box within the picture"] += clipped.count(None)
            batch.append([Found(each) for each in clipped if each is not None])
        return batch

    def _segment(self, images: Sequence[DecodedImage], found: Batch, tally: Tally) -> Batch:
        with tally.timed("segment"):
            masks = self._segmenter.segment(
                images, [[each.detection for each in some] for some in found]
            )
        _check_length("segmenter", masks, images)
        batch: Batch = []
        for image, some, segments in zip(images, found, masks, strict=True):
            _check_length("segmenter", segments, some)
            kept = []
            for each, segment in zip(some, segments, strict=True):
                if segment is None or not segment.rle.area or not math.isfinite(segment.score):
                    tally.dropped["no mask"] += 1
                elif segment.rle.size != image.size:
                    raise ValueError(
                        f"the segmenter gave a mask of {segment.rle.size} for an image of "
                        f"{image.size} (height, width)"
                    )
                else:
                    kept.append(replace(each, segment=segment))
            batch.append(kept)
        return batch

    def _describe(self, images: Sequence[DecodedImage], found: Batch, tally: Tally) -> Batch:
        with tally.timed("describe"):
            texts = self._describer.describe(images, found)
        _check_length("describer", texts, images)
        batch: Batch = []
        for some, described in zip(found, texts, strict=True):
            _check_length("describer", described, some)
            expressions = [clean_expression(text) for text in described]
            tally.dropped["no description"] += expressions.count("")
            batch.append(
                [
                    replace(each, expression=expression)
                    for each, expression in zip(some, expressions, strict=True)
                    if expression
                ]
            )
        return batch

    def _filter(
        self, after: When, images: Sequence[DecodedImage], found: Batch, tally: Tally
    ) -> Batch:
        with tally.timed("filter"):
            for judge in self._filters:
                if judge.after == after:
                    found = [
                        _kept(judge, image, some, tally)
                        for image, some in zip(images, found, strict=True)
                    ]
        return found


def _kept(judge: Filter, image: DecodedImage, found: list[Found], tally: Tally) -> list[Found]:
    reasons = judge.judge(image, found)
    _check_length(type(judge).__name__, reasons, found)
    tally.dropped.update(reason for reason in reasons if reason is not None)
    return [each for each, reason in zip(found, reasons, strict=True) if reason is None]


def _clip(detection: Detection, size: tuple[int, int]) -> Detection | None:
    """The part of a box within the image; None where nothing is left, or it is no box at all."""
    if not all(map(math.isfinite, (*detection.box, detection.score))):
        return None
    height, width = size
    x0, y0, x1, y1 = map(float, detection.box)
    box: Box = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    return replace(detection, box=box) if box[2] > box[0] and box[3] > box[1] else None


def _check_length(stage: str, results: Sequence[object], wanted: Sequence[object]) -> None:
    if len(results) != len(wanted):
        raise ValueError(f"the {stage} gave {len(results)} results for {len(wanted)} inputs")


def _merge(output: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """Join the shards that are done into ``<split>.jsonl`` (or ``data/``) and ``manifest.json``.

    What comes out depends on which shards are done and on nothing else.
    """
    split, container = plan["job"]["split"], plan["job"]["container"]
    for name in (PLAN, MANIFEST, f"{split}.jsonl"):
        for old in stale_paths(output / name):
            old.unlink(missing_ok=True)
    folders = [shard_folder(output, number) for number in range(plan["shards"])]
    done = [folder for folder in folders if folder.exists()]
    tally = Tally()
    for folder in done:
        tally.add(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    if container == "jsonl":
        _join_lines(output / f"{split}.jsonl", done)
    else:
        _link_tables(output / "data", split, done)
    manifest = {
        "complete": len(done) == len(folders),
        "shards": {"done": len(done), "of": len(folders)},
        **tally.to_json(),
    }
    temporary = temporary_path(output / MANIFEST)
    temporary.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, output / MANIFEST)
    return manifest


def _join_lines(path: Path, folders: Sequence[Path]) -> None:
    """All lines in the order of shards; paths of images start from the folder of the run."""
    temporary = temporary_path(path)
    with temporary.open("w", encoding="utf-8") as joined:
        for folder in folders:
            with (folder / path.name).open(encoding="utf-8") as lines:
                for line in lines:
                    record = json.loads(line)
                    record["image"] = f"{SHARDS}/{folder.name}/{record['image']}"
                    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
                    joined.write(text + "\n")
    os.replace(temporary, path)


def _link_tables(data: Path, split: str, folders: Sequence[Path]) -> None:
    """Second names for the tables, under which data sets of the hub are looked for."""
    data.mkdir(exist_ok=True)
    for folder in folders:
        path = data / f"{split}-{folder.name}.parquet"
        if not path.exists():
            temporary = temporary_path(path)
            temporary.unlink(missing_ok=True)
            os.link(folder / f"{split}.parquet", temporary)
            os.replace(temporary, path)
