"""Annotating a source: all stages, shard by shard, in one process or several, joined at the end.

A shard is annotated into a folder that gets its name once it is complete, so a run that was stopped
in any way resumes where it was. The output depends on the job alone, not on the number of workers
and machines.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any, TypeVar

from seg_env.data.annotate.describing import clean_expression
from seg_env.data.annotate.job import (
    MANIFEST,
    SHARDS,
    Job,
    build_plan,
    check_plan,
    partial_path,
    record_plan,
    shard_folder,
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
    Reason,
    Segmenter,
    Shard,
    When,
    by_image,
    check_whole,
    load_stage,
)
from seg_env.data.annotate.tally import Tally
from seg_env.data.annotate.writers import Annotated, to_line, write_json_lines, write_parquet

T = TypeVar("T")
R = TypeVar("R")


def annotate(
    job: Job,
    output: str | os.PathLike[str],
    *,
    workers: int = 1,
    part: tuple[int, int] = (0, 1),
    on_progress: Callable[[int, int, int], object] = lambda done, of, images: None,
) -> dict[str, Any]:
    """Do a job, or what is left of it, and write records and ``manifest.json`` into a folder.

    Run it again after an interruption of any kind to resume. Several machines can each take a part
    of the shards and write into one folder at the same time; without a shared disk, copy what they
    wrote below ``shards`` into one folder, and run it there.

    Args:
        job: What is to be done.
        output: Folder of the run; holds the records in the end.
        workers: Processes; each loads the models and takes shards of its own.
        part: Number of this machine, from 0, and how many there are.
        on_progress: Called after each batch of images, or several times a second with workers, with
            three counts: shards of this part that are done, including those of earlier runs; all
            shards of this part; images that this run has annotated.

    Returns:
        The manifest: counts over everything that is done, by whichever machine.

    Raises:
        ValueError: The job cannot be done, or the folder holds another one.
        OSError: A disk or a server failed; what is done stays.
    """
    check_whole(1, workers=workers)
    root = Path(output)
    shards: list[Shard] = load_stage(job.source, ImageSource).shards()
    plan = build_plan(job, shards)
    check_plan(root, plan)  # before models are loaded for nothing
    mine = list(enumerate(shards))[part[0] :: part[1]]  # so that parts finish together
    missing = [each for each in mine if not shard_folder(root, each[0]).exists()]

    def report(done: int, images: int) -> None:
        on_progress(len(mine) - len(missing) + done, len(mine), images)

    if not missing:
        record_plan(root, plan)  # all was copied here from other machines
        images = 0
    elif min(workers, len(missing)) == 1:
        images = _in_this_process((job, root, plan), missing, report)
    else:
        images = _in_processes((job, root, plan), missing, workers, report)
    report(len(missing), images)
    return _merge(root, plan)


Run = tuple[Job, Path, dict[str, Any]]
"""The job, the folder of the run, and its plan."""
NumberedShard = tuple[int, Shard]
"""A shard and its place in the source, from 0."""
Report = Callable[[int, int], None]
"""Called with the number of shards that are done, and of images that have been annotated."""


def _in_this_process(run: Run, shards: Sequence[NumberedShard], report: Report) -> int:
    images = done = 0

    def count(new: int) -> None:
        nonlocal images
        images += new
        report(done, images)

    annotator = Annotator(*run, count)
    for shard in shards:
        annotator.annotate(*shard)
        done += 1
    return images


def _in_processes(run: Run, shards: Sequence[NumberedShard], workers: int, report: Report) -> int:
    workers = min(workers, len(shards))
    context = get_context("spawn")  # models and threads do not survive a fork
    images, stop = context.Value("q", 0), context.Event()
    with ProcessPoolExecutor(workers, context, _begin_worker, (run, workers, images, stop)) as pool:
        pending = {pool.submit(_work, *shard) for shard in shards}
        try:
            while pending:
                done, pending = wait(pending, 0.25, FIRST_EXCEPTION)
                for future in done:
                    future.result()
                report(len(shards) - len(pending), images.value)
        except BaseException:
            stop.set()  # or the pool would wait until every worker has done its shard
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return int(images.value)


_annotator: Callable[[], Annotator]
"""Returns the annotator of this process, if it is a worker."""


def _begin_worker(run: Run, workers: int, images: Any, stop: Any) -> None:
    """Prepare a worker process: it ends with its parent, and shares the cores."""
    global _annotator
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    # Libraries read this when they are imported, which the stages do.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

    def count(new: int) -> None:
        with images.get_lock():
            images.value += new
        if stop.is_set():
            raise InterruptedError("another worker failed")

    # Loaded with the first shard, to have errors reported.
    _annotator = cache(partial(Annotator, *run, count))


def _exit_with_parent() -> None:
    """End this process when the one that started it has been killed."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _work(number: int, shard: Shard) -> None:
    _annotator().annotate(number, shard)


class Annotator:
    """Finds, segments, describes and filters the objects of images."""

    def __init__(
        self, job: Job, output: Path, plan: dict[str, Any], on_images: Callable[[int], object]
    ) -> None:
        """Load the stages with their models, then claim the folder."""
        self._job, self._output, self._on_images = job, output, on_images
        self._source: ImageSource = load_stage(job.source, ImageSource)
        self._detector: Detector = load_stage(job.detector, Detector)
        self._segmenter: Segmenter = load_stage(job.segmenter, Segmenter)
        self._describer: Describer = load_stage(job.describer, Describer)
        self._filters: list[Filter] = [load_stage(text, Filter) for text in job.filters]
        self._tally = Tally()
        record_plan(output, plan)  # a stage that cannot be built must not claim it

    def annotate(self, number: int, shard: Shard) -> None:
        """Annotate a shard into a folder of its own; reports the number of images of each batch."""
        final = shard_folder(self._output, number)
        folder = partial_path(final)
        folder.mkdir()
        tally = self._tally = Tally()
        write = write_parquet if self._job.container == "parquet" else write_json_lines
        try:
            write(folder, self._job, self._annotated(shard, final.name), tally)
            _write_json(folder / MANIFEST, {"shard": shard.name, **tally.to_json()})
            os.rename(folder, final)
        except OSError:
            if not final.exists():  # else another process was faster; both hold the same
                raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _annotated(self, shard: Shard, name: str) -> Iterator[Annotated]:
        """Each image of a shard that has objects, by a name from its place in it, with them."""
        places = enumerate(self._decoded(shard))
        while batch := list(islice(places, self._job.batch_size)):
            names = {image: f"{name}-{place:06d}" for place, image in batch if image is not None}
            for image, objects in by_image(self._objects(list(names))):
                self._tally.images["annotated"] += 1
                yield names[image], objects
            self._on_images(len(names))

    def _decoded(self, shard: Shard) -> Iterator[DecodedImage | None]:
        """The images of a shard, with None for each that is left out."""
        raws = self._source.read(shard)
        while True:
            with self._tally.timed("read"):
                image: RawImage | Reason | None = next(raws, None)
                if isinstance(image, RawImage):
                    image = open_image(image)
            if image is None:
                return
            if isinstance(image, DecodedImage):
                self._tally.images["read"] += 1
                yield image
            else:
                self._tally.rejected[image] += 1
                yield None

    def _objects(self, images: Sequence[DecodedImage]) -> list[Found]:
        """The objects of images that pass all filters, each with mask and expression."""
        objects = self._filter("detector", self._detect(images))
        objects = self._filter("segmenter", self._segment(objects))
        return self._filter("describer", self._describe(objects))

    def _ask(
        self, what: str, ask: Callable[..., Sequence[R]], inputs: Sequence[T], *before: DecodedImage
    ) -> list[tuple[T, R]]:
        """Each input with the result of a stage; ValueError if their numbers differ."""
        with self._tally.timed(what):
            results = ask(*before, inputs) if inputs else []
        if len(results) != len(inputs):
            name = getattr(ask, "__qualname__", ask)
            raise ValueError(f"{name} gave {len(results)} results for {len(inputs)} inputs")
        return list(zip(inputs, results, strict=True))

    def _detect(self, images: Sequence[DecodedImage]) -> Iterator[Found]:
        for image, boxes in self._ask("detect", self._detector.detect, images):
            self._tally.objects["detected"] += len(boxes)
            ranked = sorted(
                boxes, key=lambda each: -each.score if math.isfinite(each.score) else math.inf
            )
            self._tally.dropped["too many objects"] += len(ranked[self._job.most_objects :])
            for each in ranked[: self._job.most_objects]:
                if (clipped := _clip(each, image.size)) is not None:
                    yield Found(image, clipped)
                else:
                    self._tally.dropped["no box within the picture"] += 1

    def _segment(self, objects: Sequence[Found]) -> Iterator[Found]:
        for found, segment in self._ask("segment", self._segmenter.segment, objects):
            if segment is None or not segment.rle.area or not math.isfinite(segment.score):
                self._tally.dropped["no mask"] += 1
            elif segment.rle.size != found.image.size:
                raise ValueError(
                    f"the segmenter gave a mask of {segment.rle.size} for an image of "
                    f"{found.image.size} (height, width)"
                )
            else:
                yield replace(found, segment=segment)

    def _describe(self, objects: Sequence[Found]) -> Iterator[Found]:
        for found, text in self._ask("describe", self._describer.describe, objects):
            if expression := clean_expression(text):
                yield replace(found, expression=expression)
            else:
                self._tally.dropped["no description"] += 1

    def _filter(self, after: When, objects: Iterable[Found]) -> list[Found]:
        kept = list(objects)
        for judge in (each for each in self._filters if each.after == after):
            judged = []
            for image, some in by_image(kept):
                judged += self._ask("filter", judge.judge, some, image)
            kept = [found for found, reason in judged if reason is None]
            self._tally.dropped.update(reason for _, reason in judged if reason is not None)
        return kept


def _clip(detection: Detection, size: tuple[int, int]) -> Detection | None:
    """The part of a box within the image; None where nothing is left, or a number is not finite."""
    if not all(map(math.isfinite, (*detection.box, detection.score))):
        return None
    height, width = size
    x0, y0, x1, y1 = map(float, detection.box)
    box: Box = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    return replace(detection, box=box) if box[2] > box[0] and box[3] > box[1] else None


def _merge(output: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """Join the shards that are done into ``<split>.jsonl`` (or ``data/``) and ``manifest.json``.

    The output depends on which shards are done and on nothing else.
    """
    split = plan["job"]["split"]
    folders = [shard_folder(output, number) for number in range(plan["shards"])]
    done = [folder for folder in folders if folder.exists()]
    tally = Tally()
    for folder in done:
        tally.add(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    if plan["job"]["container"] == "jsonl":
        _write(output / f"{split}.jsonl", _joined_lines(f"{split}.jsonl", done))
    else:  # hard links to the tables, named like those of data sets of the hub
        (output / "data").mkdir(exist_ok=True)
        for folder in done:
            with suppress(FileExistsError):
                name = f"{split}-{folder.name}.parquet"
                os.link(folder / f"{split}.parquet", output / "data" / name)
    manifest = {
        "complete": len(done) == len(folders),
        "shards": {"done": len(done), "of": len(folders)},
        **tally.to_json(),
    }
    if manifest["complete"]:  # nobody works on a shard now: what killed processes left can go
        for unfinished in (output / SHARDS).glob("*.partial-*"):
            shutil.rmtree(unfinished, ignore_errors=True)
    _write_json(output / MANIFEST, manifest)
    return manifest


def _joined_lines(name: str, folders: Sequence[Path]) -> Iterator[str]:
    """All lines in the order of shards; paths of images are relative to the folder of the run."""
    for folder in folders:
        with (folder / name).open(encoding="utf-8") as lines:
            for record in map(json.loads, lines):
                record["image"] = f"{SHARDS}/{folder.name}/{record['image']}"
                yield to_line(record)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    _write(path, [json.dumps(content, indent=2) + "\n"])


def _write(path: Path, lines: Iterable[str]) -> None:
    """Write a file that appears only once it is complete."""
    unfinished = partial_path(path)
    with unfinished.open("w", encoding="utf-8") as file:
        file.writelines(lines)
    os.replace(unfinished, path)
