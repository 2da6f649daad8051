"""A client of the server; one client is one session."""

from __future__ import annotations

from typing import Any

from openenv.core import EnvClient
from openenv.core.client_types import StepResult
from openenv.core.env_server.types import State

from seg_env.bridges.openenv.environment import OutlineAction as OutlineAction
from seg_env.bridges.openenv.environment import OutlineObservation as OutlineObservation


class OutlineClient(EnvClient[OutlineAction, OutlineObservation, State]):
    """Asks a server for questions and gives it answers; `EnvClient` has the rest."""

    def _step_payload(self, action: OutlineAction) -> dict[str, Any]:
        return action.model_dump()

    def _parse_result(self, payload: dict[str, Any]) -> StepResult[OutlineObservation]:
        said = {"reward": payload.get("reward"), "done": payload.get("done", False)}
        observation = OutlineObservation(**payload["observation"], **said)
        return StepResult(observation=observation, **said)

    def _parse_state(self, payload: dict[str, Any]) -> State:
        return State(**payload)
