"""The command line's manners: exit codes, what goes to stderr, and what is not imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from streaming.cli import COMMANDS
from streaming.embedded.processes import free_port


def limner(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LIMNER_")}
    return subprocess.run(
        [sys.executable, "-m", "streaming.cli", *arguments],
        env={**inherited, **environment}, cwd=cwd, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str) -> None:
    done = limner(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage:" in done.stdout


def test_help_lists_the_commands() -> None:
    done = limner("--help")
    assert done.returncode == 0
    assert all(f"  {command} " in done.stdout for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nosuch"], "No such command 'nosuch'"),
        (["up", "--nosuch"], "No such option"),
        (["up", "--workers", "0"], "0 is not in the range"),
        (["up", "--until-fed"], "--until-fed needs --demo"),
    ],
)
def test_wrong_use_is_2(arguments: list[str], said: str) -> None:
    done = limner(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr.splitlines()[-1]


def test_wrong_setting_is_2_with_one_line(tmp_path: Path) -> None:
    done = limner("topics", cwd=tmp_path, LIMNER_PARTITIONS="0")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("limner: wrong setting") and "LIMNER_PARTITIONS" in line


def test_failure_is_1_with_one_line(tmp_path: Path) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    done = limner("topics", cwd=tmp_path, LIMNER_KAFKA=nowhere)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("limner: ") and nowhere in line and "LIMNER_KAFKA" in line


def test_looking_up_a_profile_does_not_wait_for_torch() -> None:
    script = (
        "import sys, click\n"
        "from streaming.cli import cli\n"
        "try: cli.main(['profile', '--help'], standalone_mode=False)\n"
        "finally: print('HEAVY', {'torch', 'faust', 'transformers', 'numpy'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == "HEAVY set()"
