"""A folder that cannot be written is found before anything is written into it."""

import errno
import tempfile
from pathlib import Path

import pytest

from versatune_ds.run_folder.writable_folders import check_writable, unwritable_path


def test_a_folder_that_can_be_made_is_writable_and_nothing_is_left_in_it(tmp_path):
    assert unwritable_path(tmp_path / "runs" / "mine") is None
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_and_a_file_system_that_takes_no_files_are_found(tmp_path):
    (tmp_path / "file").write_text("")
    assert unwritable_path(tmp_path / "file" / "mine") == tmp_path / "file"
    with pytest.raises(ValueError, match=r"^run\.output_dir: /proc cannot be written; choose another folder$"):
        check_writable(Path("/proc/none/mine"), key="run.output_dir")


@pytest.mark.parametrize(("number", "is_refused"), [(errno.EROFS, True), (errno.EACCES, True), (errno.ENOSPC, False)])
def test_a_read_only_mount_is_refused_and_a_full_disk_is_not(tmp_path, monkeypatch, number, is_refused):
    def refuse(**settings):
        raise OSError(number, "made up")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert unwritable_path(tmp_path) == (tmp_path if is_refused else None)
