r"""The server, as ``uvicorn seg_env.bridges.openenv.server:app`` or by itself.

    SIMPLESEG_OPENENV='{"env_id": "SimpleSeg-RefCOCO-v0", "splits": ["train", "val"],
                        "data_root": "/data", "rewards": "mask_iou=1 format=0.1"}' \
        python -m seg_env.bridges.openenv.server --port 8000

The variable holds arguments of `make_app` as JSON.
"""

from __future__ import annotations

import json
import os
from argparse import ArgumentParser
from collections.abc import Sequence
from functools import partial
from threading import Lock
from typing import Any

import gymnasium as gym
import uvicorn
from fastapi import FastAPI
from openenv.core.env_server.http_server import create_app

from seg_env.bridges.openenv.environment import (
    OutlineAction,
    OutlineEnvironment,
    OutlineObservation,
)

VARIABLE = "SIMPLESEG_OPENENV"


def make_app(
    env_id: str = "SimpleSeg-Scenes-v0",
    splits: Sequence[str] = ("train", "val", "test"),
    sessions: int = 64,
    **arguments: Any,
) -> FastAPI:
    """A server of an environment; every client has a session of its own.

    Args:
        env_id: A registered environment.
        splits: Splits that clients may ask for, the default one first; all are opened now.
        sessions: Most sessions at a time.
        arguments: Of the environment, see `seg_env.envs.ReferringSegmentationEnv`.
    """
    opened: dict[str, Any] = {
        split: gym.make(env_id, split=split, disable_env_checker=True, **arguments).unwrapped
        for split in splits
    }
    return create_app(
        partial(OutlineEnvironment, opened, Lock()),
        OutlineAction,
        OutlineObservation,
        env_name=env_id,
        max_concurrent_envs=sessions,
    )


app = make_app(**json.loads(os.environ.get(VARIABLE, "{}")))


def main() -> None:
    """Serve until interrupted."""
    parser = ArgumentParser(description="Serve an environment over OpenEnv.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
