"""Naming rewards: specification strings, the decorator, plug-ins and import paths."""

import re
from importlib.metadata import EntryPoint, EntryPoints

import numpy as np
import pytest

from rewards import (
    DEFAULT_REWARDS,
    MaskIoU,
    Reward,
    RewardSum,
    known_rewards,
    make_reward,
    register_reward,
)
from rewards import registry as registry_module

HERE = "tests_reward_module"


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """Registrations of one test are unknown to the next."""
    monkeypatch.setattr(registry_module, "_REGISTERED", dict(registry_module._REGISTERED))


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of rewards outside this project, importable under the name in `HERE`."""
    (tmp_path / f"{HERE}.py").write_text(
        "import numpy as np\n"
        "from rewards import Reward\n"
        "class Ones(Reward):\n"
        "    name = 'ones'\n"
        "    def __init__(self, value=1.0):\n"
        "        self.value = value\n"
        "    def __call__(self, predictions, targets):\n"
        "        return np.full(len(predictions), self.value)\n"
        "class Needy(Ones):\n"
        "    def __init__(self, value):\n"
        "        super().__init__(value)\n"
        "class Unnamed(Reward):\n"
        "    def __call__(self, predictions, targets):\n"
        "        return np.zeros(len(predictions))\n"
        "class Unfinished(Reward):\n"
        "    pass\n"
        "twos = Ones(2.0)\n"
        "def function(predictions, targets):\n"
        "    return [0.0] * len(predictions)\n"
    )
    (tmp_path / "tests_broken_module.py").write_text("import there_is_no_such_module_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)


def zeros(name=None):
    body = {"__call__": lambda self, predictions, targets: np.zeros(len(predictions))}
    return type("Zeros", (Reward,), body if name is None else {**body, "name": name})


# specification strings


def test_default_rewards_are_the_three_of_the_paper():
    terms = RewardSum.from_spec(DEFAULT_REWARDS).terms
    assert {name: term.weight for name, term in terms.items()} == {
        "mask_iou": 1.0,
        "centroid_distance": 0.5,
        "format": 0.1,
    }


@pytest.mark.parametrize(
    "spec",
    [
        "mask_iou=1.0  format=gate",
        ["mask_iou=1.0", "format=gate"],
        ["mask_iou=1.0 format=gate"],
        {"mask_iou": 1.0, "format": "gate"},
        [["mask_iou", 1], ("format", "gate")],
        [(MaskIoU(), 1.0), "format=gate"],
    ],
)
def test_forms_of_one_specification(spec):
    terms = RewardSum.from_spec(spec).terms
    assert [(name, weight) for name, (_, weight) in terms.items()] == [
        ("mask_iou", 1.0),
        ("format", "gate"),
    ]


def test_a_ready_sum_passes_through():
    rewards = RewardSum.from_spec("mask_iou=1")
    assert RewardSum.from_spec(rewards) is rewards


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("", "no reward is named"),
        ("mask_iou", "'mask_iou' is malformed; expected name=weight"),
        ("=1.0", "'=1.0' is malformed"),
        ("mask_iou=", "'mask_iou' has weight ''"),
        ("mask_iou=heavy", "'mask_iou' has weight 'heavy'"),
        ("mask_iou=nan", "'mask_iou' has weight nan"),
        ("mask_iou=inf", "'mask_iou' has weight inf"),
        ({"mask_iou": None}, "'mask_iou' has weight None"),
        ("mask_iou=1 format=0.1 mask_iou=0.5", "'mask_iou' is named twice"),
        ([("mask_iou", 1.0, 2.0)], "('mask_iou', 1.0, 2.0) is malformed"),
        ([(MaskIoU, 1.0)], "is malformed; expected 'name=weight' or (name or Reward, weight)"),
        (1.0, "rewards given as float"),
    ],
)
def test_malformed_specifications(spec, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        RewardSum.from_spec(spec)


def test_unknown_name_suggests_the_closest_and_lists_the_known():
    with pytest.raises(ValueError, match=r"'mask_uoi': did you mean 'mask_iou'\?.*centroid_dist"):
        make_reward("mask_uoi")


# the decorator


def test_registered_class_is_found_by_its_name():
    registered = register_reward("zeros")(zeros())
    assert registered.name == "zeros"
    assert "zeros" in known_rewards()
    assert isinstance(make_reward("zeros"), registered)
    assert list(RewardSum.from_spec("zeros=1").terms) == ["zeros"]


def test_a_subclass_of_a_registered_reward_takes_its_own_name():
    @register_reward("strict_iou")
    class StrictIoU(MaskIoU):
        pass

    assert (StrictIoU.name, MaskIoU.name) == ("strict_iou", "mask_iou")


def test_a_class_without_a_name_is_called_by_its_class_name():
    assert zeros().name == "Zeros"


def test_name_of_another_class_is_taken():
    with pytest.raises(ValueError, match=r"'mask_iou' belongs to rewards\.mask_iou:MaskIoU"):
        register_reward("mask_iou")(zeros())


def test_the_same_class_defined_again_replaces_the_first():
    register_reward("zeros")(zeros())
    second = register_reward("zeros")(zeros())
    assert type(make_reward("zeros")) is second


def test_two_names_for_one_class_are_refused():
    with pytest.raises(ValueError, match="calls itself 'nought' and is registered as 'zeros'"):
        register_reward("zeros")(zeros("nought"))


@pytest.mark.parametrize("name", ["", "a b", "a=b", "a:b", "1st", None])
def test_malformed_names(name):
    with pytest.raises(ValueError, match="is malformed"):
        register_reward(name)


def test_only_rewards_can_be_registered():
    with pytest.raises(TypeError, match=r"not a subclass of rewards\.Reward"):
        register_reward("list")(list)


# plug-ins


@pytest.fixture
def plug_in(module, monkeypatch):
    """Pretend that an installed package offers ``plugged`` at the given import path."""

    def offer(path):
        found = EntryPoints([EntryPoint("plugged", path, registry_module.ENTRY_POINT_GROUP)])
        monkeypatch.setattr(registry_module, "entry_points", lambda **query: found.select(**query))

    return offer


def test_plug_in_takes_the_name_of_its_entry_point(plug_in):
    plug_in(f"{HERE}:Unnamed")
    assert "plugged" in known_rewards()
    assert list(RewardSum.from_spec("plugged=1").terms) == ["plugged"]


def test_plug_in_under_the_name_of_another_reward_is_refused(plug_in):
    plug_in("rewards.mask_iou:MaskIoU")
    with pytest.raises(ValueError, match="calls itself 'mask_iou' and is registered as 'plugged'"):
        make_reward("plugged")


# import paths


def test_import_path_names_a_class_or_a_ready_instance(module):
    assert make_reward(f"{HERE}:Ones").value == 1.0
    assert make_reward(f"{HERE}:twos").value == 2.0
    rewards = RewardSum.from_spec(f"mask_iou=1.0 {HERE}:Ones=0.2")
    assert list(rewards.terms) == ["mask_iou", "ones"]


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        (f"{HERE}:function", "is not a reward"),
        (f"{HERE}:np", "is not a reward"),
        (f"{HERE}:Unfinished", "is abstract; define __call__"),
        (
            f"{HERE}:Needy",
            "built without arguments: missing a required argument: 'value'",
        ),
    ],
)
def test_import_path_to_something_that_cannot_be_a_reward(module, path, complaint):
    with pytest.raises(TypeError, match=complaint):
        make_reward(path)


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        (f"{HERE}:One", r"has no 'One'; rewards it defines: Needy, Ones, Unfinished, Unnamed"),
        ("no_such_package.rewards:Ones", r"no module 'no_such_package'.*PYTHONPATH"),
        (f"{HERE}.deeper:Ones", r"no module 'tests_reward_module\.deeper'"),
        (f"{HERE}:", "is malformed"),
        (":Ones", "is malformed"),
        (".relative:Ones", "is malformed"),
    ],
)
def test_import_path_that_leads_nowhere(module, path, complaint):
    with pytest.raises(ValueError, match=complaint):
        make_reward(path)


def test_import_errors_inside_the_named_module_propagate(module):
    with pytest.raises(ModuleNotFoundError, match="there_is_no_such_module_at_all"):
        make_reward("tests_broken_module:Ones")
