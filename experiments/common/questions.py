"""Opening the questions of a registered environment; needs no deep-learning library."""

from seg_env.envs.rules import open_questions as open_questions
from seg_env.envs.rules import open_rules as open_rules
