"""``simpleseg COMMAND``: the same commands as the scripts, under one name."""

import pytest

from experiments.__main__ import COMMANDS, main


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself_on_one_screen(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.argv", ["simpleseg"])
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert 5 < len(told.splitlines()) <= 60
    assert f"simpleseg {name}" in told


def test_without_a_command_all_are_listed(capsys):
    main([])
    told = capsys.readouterr().out
    assert all(f"  {name} " in told for name in COMMANDS)


def test_an_unknown_command_is_named(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["gpso"])
    assert ended.value.code == 2
    assert "unknown command 'gpso'" in capsys.readouterr().err
