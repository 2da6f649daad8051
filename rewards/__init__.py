"""Rewards: scores of outlines against masks, found by name and combined with weights."""

from rewards.base import Reward
from rewards.boundary import BoundaryF, BoundaryIoU
from rewards.centroid_distance import CentroidDistance
from rewards.composite import DEFAULT_REWARDS, RewardScores, RewardSpec, RewardSum, Term
from rewards.format import Format
from rewards.length import LengthPenalty, VertexBudget
from rewards.mask_iou import MaskIoU
from rewards.no_target import NoTarget
from rewards.registry import known_rewards, make_reward, register_reward
from rewards.trainers import for_swift, for_trl, for_verl

__all__ = [
    "DEFAULT_REWARDS",
    "BoundaryF",
    "BoundaryIoU",
    "CentroidDistance",
    "Format",
    "LengthPenalty",
    "MaskIoU",
    "NoTarget",
    "Reward",
    "RewardScores",
    "RewardSpec",
    "RewardSum",
    "Term",
    "VertexBudget",
    "for_swift",
    "for_trl",
    "for_verl",
    "known_rewards",
    "make_reward",
    "register_reward",
]
