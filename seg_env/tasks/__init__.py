"""Grounding tasks: any of text, point, box and outline asked from another."""

from seg_env.tasks.tasks import (
    PROMPTS,
    TASKS,
    TEXT_TASKS,
    Query,
    Task,
    answer,
    askable,
    box_of,
    centre_of,
    form_of,
    point_of,
    prompt_for,
    query_of,
    question,
)

__all__ = [
    "PROMPTS",
    "TASKS",
    "TEXT_TASKS",
    "Query",
    "Task",
    "answer",
    "askable",
    "box_of",
    "centre_of",
    "form_of",
    "point_of",
    "prompt_for",
    "query_of",
    "question",
]
