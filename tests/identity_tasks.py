"""Tasks so easy that an agent which does not solve them in seconds has a bug.

After Stable-Baselines3's identity environments. Answers are digits: nothing else may be written.
"""

from abc import ABC, abstractmethod
from functools import cache

import numpy as np
import torch
from agents_fixtures import parameters_of, small_policy

from agents.policy.scoring import score
from seg_env.envs.vertex import VertexCredit

DIGITS = "0123456789"
CLONING_STEPS = 80
"""Of the policy that copies with mistakes."""
IMAGE = np.zeros((16, 16, 3), dtype=np.uint8)


class IdentityTask(ABC):
    """What an agent needs of a vector environment, for questions without a picture."""

    questions: tuple[str, ...]
    """Expressions asked about."""
    tokens: int
    """Length of an answer."""
    vertex: int
    """Digits of a vertex."""

    def __init__(self, num_envs):
        self.num_envs = num_envs
        self.dataset = self.questions

    @property
    def unwrapped(self):
        return self

    @abstractmethod
    def earned(self, question, text):
        """What each vertex of an answer earns."""

    def reset(self, options):
        self.asked = options["indices"]
        prompts = [self.questions[index] for index in self.asked]
        return {"image": [IMAGE] * self.num_envs, "prompt": prompts}, {}

    def step(self, texts):
        rewards = np.array([sum(self.earned(i, t)) for i, t in zip(self.asked, texts, strict=True)])
        done = np.ones(self.num_envs, dtype=bool)
        infos = {"iou": rewards, "valid": done, "num_vertices": [len(text) for text in texts]}
        return None, rewards, done, ~done, infos

    def vertex_credit(self, texts):
        credits = []
        for question, text in zip(self.asked, texts, strict=True):
            earned = np.array(self.earned(question, text))
            ends = self.vertex * np.arange(1, len(earned) + 1)
            credits.append(VertexCredit(ends, earned, earned))
        return credits


class OneToken(IdentityTask):
    """Reward 1 for the digit that belongs to the shape asked for."""

    questions = ("circle", "star")
    answers = "38"
    tokens = vertex = 1

    def earned(self, question, text):
        return [float(text == self.answers[question])]


class TenVertices(IdentityTask):
    """Copy ten vertices of two digits each, a tenth of the reward for each one."""

    questions = ("shape",)
    outline = "13244567587653423120"
    tokens, vertex = 20, 2

    def earned(self, question, text):
        starts = range(0, self.tokens, 2)
        return [0.1 * float(text[i : i + 2] == self.outline[i : i + 2]) for i in starts]


class TwoTurns(IdentityTask):
    """Reward 1 for the digit asked for, in each of two turns with a question of its own."""

    questions = ("circle",)
    later = "star"
    answers = "38"
    tokens = vertex = 1

    def earned(self, question, text):
        return [float(text == self.answers[question])]

    def reset(self, options):
        self.turn = 0
        return super().reset(options)

    def step(self, texts):
        self.asked = np.full(self.num_envs, self.turn)
        *rest, done, truncated, infos = super().step(texts)
        self.turn += 1
        return *rest, done & (self.turn == 2), truncated, infos

    def fork(self, sources):
        prompts = [self.later] * len(sources)
        return {"image": [IMAGE] * len(sources), "prompt": prompts}


def digits_policy():
    """A policy with random weights that writes nothing but digits."""
    policy = small_policy()
    policy.forbidden[:] = True
    policy.forbidden[digit_tokens(policy, DIGITS)] = False
    return policy


def digit_tokens(policy, text):
    return torch.tensor(policy.tokenizer.convert_tokens_to_ids(list(text)))


def careless_policy():
    """A policy that copies the ten vertices, every second one with a mistake."""
    policy = digits_policy()
    policy.model.load_state_dict(_careless_weights())
    return policy


@cache
def _careless_weights():
    policy = digits_policy()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(policy.model.parameters(), lr=1e-2)
    # Its rate falls to zero: at a high one the last steps decide, and with them the rounding, which
    # vertex is hardly ever written right and may be given up for good.
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, CLONING_STEPS)
    inputs = policy.prepare([IMAGE], TenVertices.questions)
    truth = digit_tokens(policy, TenVertices.outline).expand(64, -1)
    for _ in range(CLONING_STEPS):
        noise = digit_tokens(policy, DIGITS)[torch.randint(10, truth.shape, generator=generator)]
        wrong = torch.rand(truth.shape, generator=generator) < 0.25
        answers = torch.where(wrong, noise, truth)
        loss = -score(policy, inputs, answers, torch.ones_like(answers)).log_probs.mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return parameters_of(policy)


def act(agent, task):
    """Mean reward of the likeliest answers."""
    prompts = list(task.questions)
    texts = agent.act({"image": [IMAGE] * len(prompts), "prompt": prompts})
    return float(np.mean([sum(agent.env.earned(i, text)) for i, text in enumerate(texts)]))


def act_turns(agent):
    """Rewards of the likeliest answers of `TwoTurns`, turn by turn."""
    asked = (*TwoTurns.questions, TwoTurns.later)
    texts = [agent.act({"image": IMAGE, "prompt": prompt})[0] for prompt in asked]
    return [agent.env.earned(turn, text)[0] for turn, text in enumerate(texts)]
