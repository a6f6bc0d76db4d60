"""A full disk is reported with the file that found it full; any other error stays what it is."""

import errno

import pytest

from versatune_ds.run_folder.atomic import atomic_file
from versatune_ds.run_folder.disk_errors import DiskError, with_full_disk_named


def test_a_full_disk_becomes_one_line_with_the_file_and_the_way_out():
    error = with_full_disk_named(OSError(errno.ENOSPC, "No space left on device", "/run/state.json"))
    assert isinstance(error, DiskError)
    assert str(error) == "/run/state.json: No space left on device; free some disk space and start again"
    assert "Disk quota exceeded; free" in str(with_full_disk_named(OSError(errno.EDQUOT, "Disk quota exceeded")))


def test_another_error_is_left_as_it_is():
    for error in (OSError(errno.EIO, "Input/output error"), ValueError("wrong")):
        assert with_full_disk_named(error) is error


def test_a_write_that_finds_the_disk_full_has_the_name_of_the_file(tmp_path):
    with pytest.raises(OSError, match=r"state\.json") as caught, atomic_file(tmp_path / "state.json"):
        raise OSError(errno.ENOSPC, "No space left on device")  # what a write on an open stream raises
    assert caught.value.filename == str(tmp_path / "state.json")
    assert list(tmp_path.iterdir()) == []
