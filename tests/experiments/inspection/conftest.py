"""A run to look into."""

import pytest
import tyro

from experiments import run_gspo


@pytest.fixture(scope="session")
def finished_run(policy_folder, tmp_path_factory):
    """The folder of a run of three updates, all of whose rollouts are kept."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    words = [
        *("--policy", str(policy_folder), "--precision", "float32", "--output-dir", str(folder)),
        *("--seed", "3", "--updates", "3", "--rollouts-every", "1", "--gspo.max-new-tokens", "40"),
        *("--gspo.prompts-per-update", "4", "--gspo.group-size", "4"),
        *("--gspo.learning-rate", "1e-3", "--evaluation.every", "1"),
        *("--evaluation.questions", "30", "--evaluation.answers", "2"),
    ]
    run_gspo.main(tyro.cli(run_gspo.Args, args=words))
    return folder
