"""The environments in which an outline is improved over several turns, single and batched."""

from __future__ import annotations

from collections.abc import Sequence

from seg_env.envs.credit import VertexCredit
from seg_env.envs.referring import ReferringSegmentationEnv
from seg_env.envs.rules import find_refine_rules
from seg_env.envs.vector import ReferringSegmentationVectorEnv


class RefineEnv(ReferringSegmentationEnv):
    """Improve the outline of what a referring expression means, over several turns.

    ## Description
    As in `ReferringSegmentationEnv` an expression is given and an outline asked for. Then the agent
    sees its outline drawn on the image and written in the prompt, and answers with a better one,
    with edits, or with ``done``.

    ## Action Space
    `PolygonText`: any string. It is read as

    - an outline if there is a bracket in it: ``[[[0.512,0.331],[0.51,0.34],[0.498,0.35]]]``; it
      takes the place of the one before;
    - edits, separated by ``;`` or line breaks: ``move i x y``, ``insert i x y`` (a new vertex
      before vertex ``i``), ``delete i``. Vertices are numbered from 0 through all rings in order,
      numbers are written as in the outline, and edits apply one after the other: all of them, or
      none if one cannot be;
    - ``done``.

    Anything else, an outline with any fault and what is longer than ``max_characters`` cost the
    turn and leave the outline as it is. ``info["fault"]`` says why.

    ## Observation Space
    That of `ReferringSegmentationEnv`: ``image``, on which the last outline is drawn, and
    ``prompt``, which has it too, and the number of the turn. Before the first outline they are the
    plain image and question.

    ## Rewards
    What the turn improved the weighted reward of the outline by (the rewards of
    `ReferringSegmentationEnv`); the first outline is compared with 0. So the return of an episode
    is the reward of the outline it ends with, 0 if there is none.

    ## Starting State
    As in `ReferringSegmentationEnv`; ``info`` adds ``outline`` (so far, as text), ``turn`` (turns
    taken) and ``turns_left``.

    ## Episode End
    With ``done`` or after ``turns`` turns, which the prompt counts: ``terminated`` is True.
    ``truncated`` is never. ``info`` has what `ReferringSegmentationEnv` reports, about the outline
    as it stands; but ``valid``, ``issues`` and ``fault`` are about what was answered in this turn.

    ## Arguments
    Those of `ReferringSegmentationEnv` without ``step_mode``, and

    - ``turns``: 1 to 64, 3 by default.
    - ``max_characters``: longest action read and longest outline kept, 16384 by default.
    - ``refine_template``: the prompt once there is an outline, with ``{question}``,
      ``{outline}``, and ``{turn}`` and ``{turns}`` where wanted.

    ```python
    >>> import gymnasium as gym
    >>> env = gym.make("seg_env:SimpleSegRefine-Scenes-v0", split="val", rewards="mask_iou=1.0")
    >>> observation, info = env.reset(seed=0)
    >>> first = env.step("[[[0.1,0.1],[0.9,0.1],[0.5,0.8]]]")
    >>> second = env.step("move 2 0.5 0.9; insert 3 0.3 0.7")
    >>> second[4]["outline"], second[4]["turns_left"]
    ('[[[0.1,0.1],[0.9,0.1],[0.5,0.9],[0.3,0.7]]]', 1)
    >>> env.step("done")[2:4]
    (True, False)

    ```

    ## Version History
    * v0: first version
    """

    _find_rules = staticmethod(find_refine_rules)


class RefineVectorEnv(ReferringSegmentationVectorEnv):
    """``N`` environments of `RefineEnv` whose outlines are scored together.

    As `ReferringSegmentationVectorEnv`, but episodes have several steps and end one by one.
    Trainers disable autoreset and step until all have ended, with None in place of an action where
    one has:

    ```python
    >>> import gymnasium as gym
    >>> name = "seg_env:SimpleSegRefine-Scenes-v0"
    >>> envs = gym.make_vec(name, num_envs=2, autoreset_mode="Disabled")
    >>> observations, infos = envs.reset(options={"indices": [7, 8]})
    >>> triangle = "[[[0.1,0.1],[0.9,0.1],[0.5,0.8]]]"
    >>> observations, rewards, ended, truncated, infos = envs.step(["done", triangle])
    >>> ended.tolist()
    [True, False]
    >>> observations, rewards, ended, truncated, infos = envs.step([None, "done"])
    >>> ended.tolist(), infos["_iou"].tolist()
    ([True, True], [False, True])

    ```
    """

    _find_rules = staticmethod(find_refine_rules)

    def vertex_credit(self, texts: Sequence[str]) -> list[VertexCredit]:
        """Raise TypeError: a turn earns an improvement, and may be an edit."""
        raise TypeError(
            "vertices of a turn have no rewards of their own, as a turn earns what it improved: "
            "credit whole answers here"
        )
