"""Annotating one shard: all of it, or nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from seg_env.data.annotate.annotator import Annotator
from seg_env.data.annotate.job import Job
from seg_env.data.annotate.nouns import Picture, Rejected, Shard
from seg_env.data.annotate.pictures import Limits, open_picture
from seg_env.data.annotate.plan import MANIFEST, leftovers, shard_folder, unique
from seg_env.data.annotate.stages import ImageSource
from seg_env.data.annotate.tally import Tally
from seg_env.data.annotate.writers import WRITERS

OnPictures = Callable[[int], object]
"""Called with the number of pictures that have been annotated since the last call."""


def annotate_shard(
    job: Job,
    source: ImageSource,
    annotator: Annotator,
    shard: Shard,
    output: Path,
    on_pictures: OnPictures | None = None,
) -> None:
    """Annotate the pictures of a shard into a folder of its own.

    The folder has a temporary name until everything is in it. Where another process was faster, its
    folder stays: both hold the same.

    Args:
        job: What is written how.
        source: Where the shard comes from.
        annotator: The stages.
        shard: Which one.
        output: Folder of the run.
        on_pictures: Told about progress.
    """
    final = shard_folder(output, shard.number)
    for old in leftovers(final):
        shutil.rmtree(old, ignore_errors=True)
    folder = unique(final)
    folder.mkdir()
    tally = Tally()
    limits = Limits(job.least_side, job.most_pixels)
    numbered = enumerate(_decoded(source, shard, limits, tally))
    with WRITERS[job.container](folder, job, final.name, tally) as writer:
        while taken := list(islice(numbered, job.batch_size)):
            batch = [(number, each) for number, each in taken if isinstance(each, Picture)]
            found = annotator.annotate([picture for _, picture in batch], tally) if batch else []
            with tally.timed("write"):
                for (number, picture), some in zip(batch, found, strict=True):
                    tally.annotated += bool(some)
                    if some:
                        writer.write(number, picture, some)
            if on_pictures is not None:
                on_pictures(len(batch))
    manifest = {"shard": shard.name, **tally.to_json()}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    try:
        os.rename(folder, final)
    except OSError:  # a folder with content is never replaced
        if not final.exists():
            raise
        shutil.rmtree(folder)


def _decoded(
    source: ImageSource, shard: Shard, limits: Limits, tally: Tally
) -> Iterator[Picture | Rejected]:
    """Everything in a shard in its order, so that places in it are names that last."""
    raws = source.read(shard)
    while True:
        with tally.timed("read"):
            raw = next(raws, None)
            picture = raw if raw is None or isinstance(raw, Rejected) else open_picture(raw, limits)
        if picture is None:
            return
        if isinstance(picture, Rejected):
            tally.rejected[picture.reason] += 1
        else:
            tally.read += 1
        yield picture
