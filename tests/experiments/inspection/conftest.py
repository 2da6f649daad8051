"""A run to look into."""

import pytest
import tyro

from experiments import run_gspo


@pytest.fixture(scope="session")
def make_run(policy_folder, tmp_path_factory):
    """Makes a run of some options and returns its folder; all its rollouts are kept."""

    def make(*more):
        folder = tmp_path_factory.mktemp("runs") / "finished"
        words = [
            *("--policy", str(policy_folder), "--precision", "float32", "--seed", "3"),
            *("--output-dir", str(folder), "--rollouts-every", "1"),
            *("--gspo.prompts-per-update", "4", "--gspo.group-size", "4"),
            *("--gspo.max-new-tokens", "40", "--gspo.learning-rate", "1e-3"),
            *("--evaluation.answers", "2", *more),
        ]
        run_gspo.main(tyro.cli(run_gspo.Args, args=words))
        return folder

    return make


@pytest.fixture(scope="session")
def finished_run(make_run):
    """The folder of a run of three updates, on easy scenes."""
    easy = ("--difficulty", "easy", "--negatives", "0")
    measured = ("--evaluation.questions", "30", "--evaluation.every", "1")
    return make_run("--updates", "3", *easy, *measured)
