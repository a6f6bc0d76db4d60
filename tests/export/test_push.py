"""An export is uploaded with its own files alone, and everything that can be refused is refused before it is written.

Questions go to a server on this machine that answers as the Hub does; what would write is a stand-in that records.
"""

import json
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from command_line import command_of
from huggingface_hub import HfApi, constants

from versatune_ds.export import push, run_export
from versatune_ds.export.folder import export_folder
from versatune_ds.export.push import PushTarget, check_push, push_export
from versatune_ds.run_folder.names import EXPORT_FILE

TOKEN = "hf_" + "a" * 34
REPOS = {
    "me/public": {"id": "me/public", "private": False, "siblings": [{"rfilename": "README.md"}]},
    "me/hidden": {"id": "me/hidden", "private": True, "siblings": []},
}


class Hub(BaseHTTPRequestHandler):
    """Answers who the token's user is, and which repositories there are."""

    def do_GET(self):
        name = self.path.removeprefix("/api/models/")
        if self.headers["authorization"] != f"Bearer {TOKEN}":
            code, values = 401, {"error": "Invalid credentials in Authorization header"}
        elif self.path == "/api/whoami-v2":
            code, values = 200, {"name": "me", "type": "user", "orgs": []}
        else:
            code, values = (200, REPOS[name]) if name in REPOS else (404, {"error": "Repository not found"})
        self.send_response(code)
        if code == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        self.wfile.write(json.dumps(values).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    """Answer as the Hub; return the calls that would have written."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    calls = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(push, "get_token", lambda: TOKEN)
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(push, "HfApi", partial(HfApi, endpoint=endpoint, token=TOKEN))
    for name in ("create_repo", "upload_folder"):
        monkeypatch.setattr(HfApi, name, lambda self, name=name, **arguments: calls.append((name, arguments)))
    yield calls
    server.shutdown()
    server.server_close()


@pytest.fixture
def exported(tmp_path):
    """Make an export of three files, in a folder that has another file too."""
    with export_folder(tmp_path / "export", run_name="tiny") as folder:
        for name in ("README.md", "config.json", "model.safetensors"):
            (folder / name).write_text("{}")
    (tmp_path / "export" / "notes.txt").write_text("secret")
    return tmp_path / "export"


def test_only_the_files_of_the_export_are_uploaded_to_a_repository_that_is_made_private(hub, exported, caplog):
    caplog.set_level("INFO")
    target = check_push("law", is_private=True)
    assert target == PushTarget(repo_id="me/law", is_private=True, has_card=False)
    assert hub == []
    assert push_export(exported, target) == "https://huggingface.co/me/law"
    (made, how), (uploaded, what) = hub
    assert (made, how) == ("create_repo", {"repo_id": "me/law", "private": True, "exist_ok": True})
    assert uploaded == "upload_folder"
    assert what["allow_patterns"] == ["README.md", "config.json", "model.safetensors"]
    assert what["folder_path"] == exported
    assert "*.safetensors" in what["delete_patterns"]
    assert "to me/law (private)" in caplog.text
    assert TOKEN not in caplog.text


def test_a_card_that_is_on_the_hub_already_stays(hub, exported, caplog):
    caplog.set_level("INFO")
    target = check_push("me/public", is_private=False)
    push_export(exported, target)
    assert "to me/public (public)" in caplog.text
    assert hub[1][1]["allow_patterns"] == ["config.json", "model.safetensors"]
    assert "me/public has a README.md, which stays" in caplog.text
    assert hub[0][1]["private"] is None
    assert check_push("me/hidden", is_private=False).is_private  # it says so, and stays private


def test_a_repository_that_is_made_is_not_called_public_before_its_owners_default_is_known(hub, exported, caplog):
    caplog.set_level("INFO")
    target = check_push("me/new", is_private=False)
    assert target.is_private is None
    push_export(exported, target)
    assert hub[0][1]["private"] is None
    assert "to me/new (new: public, unless its owner has set that new ones are private)" in caplog.text


def test_adapters_that_name_a_base_model_on_this_machine_are_uploaded_with_a_warning(hub, tmp_path, caplog):
    with export_folder(tmp_path / "export", run_name="tiny") as folder:
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    push_export(tmp_path / "export", check_push("me/new", is_private=False))
    assert "adapter_config.json names the base model by a path of this machine" in caplog.text


@pytest.mark.parametrize(
    ("repo_id", "is_private", "message"),
    [
        ("a/b/c", False, r"^--push: 'a/b/c' is no name of a repository: expected NAMESPACE/NAME$"),
        ("me/public", True, r"^--private: me/public exists and is public; make it private in its settings"),
    ],
)
def test_a_repository_that_does_not_fit_is_refused(hub, repo_id, is_private, message):
    with pytest.raises(ValueError, match=message):
        check_push(repo_id, is_private=is_private)


def test_a_push_without_a_token_or_offline_is_refused_before_anything_is_asked(hub, monkeypatch):
    monkeypatch.setattr(push, "get_token", lambda: None)
    monkeypatch.setattr(push, "HfApi", None)
    with pytest.raises(ValueError, match=r"^--push: there is no token for the Hub; set HF_TOKEN, or log in once with"):
        check_push("me/law", is_private=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"^--push: HF_HUB_OFFLINE is set"):
        check_push("me/law", is_private=False)


def test_a_token_that_the_hub_refuses_is_a_users_mistake_and_stays_out_of_the_message(hub, monkeypatch):
    monkeypatch.setattr(push, "HfApi", partial(push.HfApi, token="hf_wrong"))
    with pytest.raises(
        ValueError, match=r"^--push: the Hub refuses the token for me/law \(401\): expected one that"
    ) as no:
        check_push("me/law", is_private=False)
    assert "hf_wrong" not in str(no.value)


def test_a_hub_that_cannot_be_reached_fails_in_one_line(hub, monkeypatch):
    monkeypatch.setattr(push, "HfApi", partial(HfApi, endpoint="http://127.0.0.1:9", token=TOKEN))
    with pytest.raises(RuntimeError, match=r"^--push: me/law: could not reach the Hub: [^\n]*$"):
        check_push("me/law", is_private=False)


def test_an_upload_that_fails_leaves_the_export_and_says_so(hub, exported, monkeypatch):
    def fail(self, **_):
        raise OSError("connection reset\nby peer")

    monkeypatch.setattr(HfApi, "upload_folder", fail)
    target = PushTarget(repo_id="me/law", is_private=False, has_card=False)
    with pytest.raises(
        RuntimeError, match=r"could not upload to it: connection reset; .*export has the complete export,"
    ):
        push_export(exported, target)


def test_the_command_checks_before_it_exports_and_prints_folder_and_address(
    hub, exported, monkeypatch, capsys, tmp_path
):
    (tmp_path / "config.yaml").write_text("{}")
    versatune = command_of(capsys)
    asked = {}

    def export(run_dir, **arguments):
        asked.update(arguments)
        return exported

    monkeypatch.setattr(run_export, "export_run", export)
    result = versatune("export", tmp_path, "--push", "law", "--private")
    assert (result.code, result.out.splitlines()) == (0, [str(exported), "https://huggingface.co/me/law"])
    assert asked["repo_id"] == "me/law"
    asked.clear()
    result = versatune("export", tmp_path, "--push", "a/b/c")
    assert (result.code, asked) == (2, {})
    result = versatune("export", tmp_path, "--private")
    assert result.code == 2
    assert "--private: expected together with --push REPO_ID" in result.err


def test_an_export_records_its_own_files(exported):
    assert json.loads((exported / EXPORT_FILE).read_text()) == {
        "run": "tiny", "files": ["README.md", "config.json", "model.safetensors"],
    }  # fmt: skip
