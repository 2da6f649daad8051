"""Groups that teach nothing make room for others (DAPO's dynamic sampling, arXiv 2503.14476)."""

from __future__ import annotations

from agents.advantages import degenerate_groups
from agents.rollout import Rollout, join


def replace_degenerate(rollout: Rollout, spare: Rollout, pad_id: int) -> Rollout:
    """Put groups of a spare rollout in place of those whose rewards are all equal.

    Args:
        rollout: ``B`` prompts; the groups that teach something come first in the result.
        spare: Of the same group size.
        pad_id: Token that prompts are padded with.

    Returns:
        ``B`` prompts again; groups that teach nothing are left if there are not enough others.
    """
    dull = degenerate_groups(rollout.rewards, rollout.group_size)
    useful = (~degenerate_groups(spare.rewards, spare.group_size)).nonzero().squeeze(-1)
    used = useful[: int(dull.sum())]
    if not len(used):
        return rollout
    order = dull.long().argsort(stable=True)  # those that teach nothing last
    kept = order[: len(order) - len(used)]
    return join(rollout.select(kept), spare.select(used), pad_id)
