"""The folder of a compiled library: who must own it, who may write to it, and what happens otherwise."""

import logging
import os
import stat
import subprocess
import sys

import pytest

from versatune_ds.kernels import build, cache_folder
from versatune_ds.kernels.cache_folder import choose_folder, close_to_others, make_private, unsafe_reason

OTHER_USER = 12345
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")


@pytest.fixture
def roots(tmp_path, monkeypatch):
    """Return (the cache that the environment sets, the user's own)."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "shared"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    cache_folder._warn_once.cache_clear()
    return tmp_path / "shared", tmp_path / "home" / "torch_extensions"


def make_library(root, *, mode=0o700):
    folder = root / "kernels_1"
    make_private(folder)
    (folder / "k.so").write_text("code")
    (folder / "k.so").chmod(0o700)
    folder.chmod(mode)
    return folder


def choose():
    return choose_folder("kernels_1", library="k.so")


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_folders_are_made_for_this_user_alone_whatever_the_umask(roots):
    before = os.umask(0)
    try:
        make_private(roots[0] / "kernels_1")
    finally:
        os.umask(before)
    assert [mode_of(roots[0]), mode_of(roots[0] / "kernels_1")] == [0o700, 0o700]


def test_a_private_library_is_used_without_a_warning(roots, caplog):
    folder = make_library(roots[0], mode=0o755)
    assert choose() == folder
    assert caplog.text == ""


def test_without_a_configured_folder_only_the_users_cache_is_used(roots, monkeypatch):
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    assert cache_folder.cache_roots() == (roots[1],)
    assert choose() == roots[1] / "kernels_1"


@needs_root
@pytest.mark.parametrize("name", ["kernels_1", "kernels_1/k.so", ""], ids=["folder", "library", "root"])
def test_a_library_of_another_user_is_not_loaded_and_is_logged_once(roots, caplog, name, monkeypatch):
    make_library(roots[0])
    monkeypatch.setattr(os, "geteuid", lambda: OTHER_USER - 1)  # a user who is not root and not the owner
    os.chown(roots[0] / name, OTHER_USER, -1)
    with caplog.at_level(logging.WARNING):
        assert choose() == choose() == roots[1] / "kernels_1"
    assert [record.getMessage() for record in caplog.records] == [
        f"kernel cache {roots[0] / name}: belongs to user 12345, not to 12344 or root; not used"
    ]


@needs_root
def test_a_library_built_by_root_for_all_is_used(roots, monkeypatch):
    folder = make_library(roots[0], mode=0o755)
    monkeypatch.setattr(os, "geteuid", lambda: OTHER_USER)
    assert choose() == folder


def test_a_cache_that_everybody_may_write_to_is_used_only_if_it_is_sticky(roots):
    make_library(roots[0])
    roots[0].chmod(0o777)
    assert choose() == roots[1] / "kernels_1"
    roots[0].chmod(0o1777)
    assert choose() == roots[0] / "kernels_1"


@needs_root
def test_below_a_sticky_folder_every_folder_must_belong_to_the_user(tmp_path, monkeypatch):
    shared = tmp_path / "tmp"
    root = shared / "versatune-7" / "torch_extensions"
    make_library(root)
    shared.chmod(0o1777)
    assert unsafe_reason(root, root / "kernels_1", library="k.so") == ""
    os.chown(shared / "versatune-7", OTHER_USER, -1)
    assert "versatune-7: belongs to user 12345" in unsafe_reason(root, root / "kernels_1", library="k.so")


def test_a_folder_that_others_could_write_to_is_made_private_and_its_library_deleted(roots, caplog):
    folder = make_library(roots[0], mode=0o775)
    assert choose() == folder
    assert not build._is_built(folder / "k.so")
    close_to_others(folder)
    assert (mode_of(folder), (folder / "k.so").exists()) == (0o700, False)
    assert "other users could write to it; made private, and built again" in caplog.text
    (folder / "k.so").write_text("new")
    close_to_others(folder)
    assert build._is_built(folder / "k.so")


def test_without_a_safe_folder_the_error_lists_each_reason_and_the_remedy(roots):
    for root in roots:
        make_library(root)
        root.chmod(0o777)
    with pytest.raises(RuntimeError) as error:
        choose()
    assert str(error.value) == (
        f"kernel cache {roots[0]}: every user can replace the files in it; "
        f"kernel cache {roots[1]}: every user can replace the files in it. "
        "Set TORCH_EXTENSIONS_DIR to a folder that only you can write to"
    )


def test_nothing_is_built_in_a_folder_that_is_a_link(roots, tmp_path):
    roots[0].mkdir()
    (roots[0] / "kernels_1").symlink_to(tmp_path)
    with pytest.raises(RuntimeError, match=r"expected a folder of user \d+; remove it"):
        make_private(roots[0] / "kernels_1")


def test_a_build_under_an_open_umask_is_loaded_again_without_building(tmp_path):
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path / "cache"), "VERSATUNE_KERNELS": "cpp"}
    code = (
        "import os, pathlib; os.umask(0)\n"
        "from versatune_ds.kernels import build\n"
        "build._compile = lambda spec, workspace: (workspace / 'x.so').write_text('')\n"
        "build.torch.ops.load_library = lambda path: None\n"
        "library = build.load_library('cpu')\n"
        "build._build = None\n"
        "assert build.load_library('cpu') == library\n"
        "print(oct(library.stat().st_mode & 0o777), oct(library.parent.stat().st_mode & 0o777))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0o700", "0o700"]
