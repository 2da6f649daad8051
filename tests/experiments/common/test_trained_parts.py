"""Options of commands that say which weights are trained, in what type, and how fast."""

import pytest
import torch

from agents.policy.model import VLMPolicy
from experiments import run_bc, run_gspo, run_ppo
from experiments.common.policies import EMBEDDED, SHIPPED

SHORT = ["--updates", "1", "--evaluation.questions", "2", "--evaluation.answers", "1"]
SHORT += ["--evaluation.every", "0", "--max-new-tokens", "24"]
OPTIONS = {
    "gspo": ["--gspo.prompts-per-update", "4", "--gspo.group-size", "4", "--gspo.warmup", "0"],
    "ppo": ["--ppo.prompts-per-update", "4", "--ppo.group-size", "4", "--ppo.no-fit-critic"],
    "bc": ["--policy", "embedded", "--scenes", "8", "--cloning.batch-size", "4"],
}
SCRIPTS = {"gspo": run_gspo, "ppo": run_ppo, "bc": run_bc}


def train(name, folder, *options):
    words = [*SHORT, *OPTIONS[name], "--output-dir", str(folder), *options]
    SCRIPTS[name].command_line(words)
    return VLMPolicy.from_pretrained(folder / "policy", dtype="auto").model


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_command_trains_the_decoder_alone_in_bfloat16_with_checkpointing(name, tmp_path):
    options = ["--freeze-vision", "--weights", "bfloat16", "--gradient-checkpointing"]
    model = train(name, tmp_path, *options)
    start = VLMPolicy.from_pretrained(SHIPPED[EMBEDDED], dtype=torch.bfloat16).model.state_dict()
    moved = set()
    for key, value in model.state_dict().items():
        assert value.dtype == torch.bfloat16
        if not torch.equal(value, start[key]):
            moved.add("tower" if "vision_tower" in key or "projector" in key else "decoder")
    assert moved == {"decoder"}


def test_a_tower_with_a_rate_of_its_own_moves_less(tmp_path):
    start = VLMPolicy.from_pretrained(SHIPPED[EMBEDDED]).model.state_dict()
    far = {}
    for rate in (None, "1e-6"):
        own = [] if rate is None else ["--vision-learning-rate", rate]
        state = train("bc", tmp_path / str(rate), *own).state_dict()
        towers = [key for key in state if "vision_tower" in key]
        far[rate] = max((state[key] - start[key]).abs().max().item() for key in towers)
    assert 0 < far["1e-6"] < far[None] / 10


def test_options_of_the_loop_are_refused_under_trl(tmp_path, capsys):
    words = ["--backend", "trl", "--freeze-vision", "--output-dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as ended:
        run_gspo.command_line(words)
    assert ended.value.code == 2
    assert "--freeze-vision has no counterpart under --backend trl" in capsys.readouterr().err
