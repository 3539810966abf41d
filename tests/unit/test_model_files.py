from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from model.e5 import _verified, convert
from model.errors import ModelCorrupt
from model.files import exclusive, is_intact, record_checksums


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "config.json").write_text("{}")
    record_checksums(folder)
    return folder


def test_a_whole_folder_is_intact(folder: Path) -> None:
    assert is_intact(folder)


def test_cut_altered_missing_or_unrecorded_is_not(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert not is_intact(folder)
    weights.write_bytes(whole[:500] + b"\xff" + whole[501:])  # same size
    assert not is_intact(folder)
    weights.unlink()
    assert not is_intact(folder)
    weights.write_bytes(whole)
    assert is_intact(folder)
    for wrong in ("", "[]", "{}", '{"config.json": 1}'):
        (folder / "checksums.json").write_text(wrong)
        assert not is_intact(folder)
    assert not is_intact(folder / "absent")


def test_files_in_folders_of_the_folder_count(folder: Path) -> None:
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    record_checksums(folder)
    assert is_intact(folder)
    (folder / "1_Pooling" / "config.json").write_text("[]")
    assert not is_intact(folder)


def test_the_packages_data_is_checked_before_use(tmp_path: Path) -> None:
    with pytest.raises(ModelCorrupt, match=r"somewhere has SHA-256 .*expected 1571fc98.*pip install"):
        _verified(b"E5S1 and then nothing", "somewhere")
    with pytest.raises(ModelCorrupt, match="E5S1"):
        convert(b"something else", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_lock_keeps_a_second_process_waiting_and_dies_with_its_holder(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    holder = textwrap.dedent(
        f"""
        import sys, time
        from pathlib import Path
        from model.files import exclusive
        with exclusive(Path({str(lock)!r})):
            print("held", flush=True)
            time.sleep(60)
        """
    )
    waiter = holder.replace("time.sleep(60)", "pass")
    with subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        with subprocess.Popen([sys.executable, "-c", waiter], stdout=subprocess.PIPE) as second:
            with pytest.raises(subprocess.TimeoutExpired):
                second.wait(1.0)
            first.kill()
            assert second.wait(10) == 0
    with exclusive(lock):
        pass
