"""Upload an export to the Hugging Face Hub.

What can fail is tried before the export is written: the name, the token, the network, the visibility of a repository
that exists. Only files that the export wrote are uploaded, whatever else is in its folder; huggingface_hub may commit a
large model in several parts. A README.md that is there already stays: it is where the owner has stated the licence.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from versatune_ds.log import first_line
from versatune_ds.run_folder.names import EXPORT_FILE

logger = logging.getLogger(__name__)

_CARD = "README.md"
_WEIGHTS = ["*.safetensors", "*.safetensors.index.json", "adapter_config.json"]
"""Files of an earlier export that are deleted where the new one does not have them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushTarget:
    """A repository that may be written."""

    repo_id: str
    """NAMESPACE/NAME."""
    is_private: bool | None
    """Whether it is made, or is already, private; None where it is made as its owner has set for new ones."""
    has_card: bool
    """Whether it exists and has a README.md."""


def check_push(repo_id: str, *, is_private: bool) -> PushTarget:
    """Check, before an export is written, that it can be uploaded; nothing is made or changed on the Hub.

    Args:
        repo_id: NAME, in the namespace of the token's user, or NAMESPACE/NAME.
        is_private: Whether the repository must be private.

    Raises:
        ValueError: If the name is none, there is no token or it may not write, or a private one exists as public.
        RuntimeError: If the Hub cannot be reached.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"--push: {repo_id!r} is no name of a repository: expected NAMESPACE/NAME") from error
    if constants.HF_HUB_OFFLINE:
        raise ValueError("--push: HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it, or leave --push out")
    if get_token() is None:
        raise ValueError("--push: there is no token for the Hub; set HF_TOKEN, or log in once with `hf auth login`")
    api = HfApi()
    user = _asked(api.whoami, repo_id, doing="reach the Hub")["name"]
    name = repo_id if "/" in repo_id else f"{user}/{repo_id}"
    if not _asked(lambda: api.repo_exists(name), name, doing="look for it"):
        return PushTarget(repo_id=name, is_private=is_private or None, has_card=False)
    info = _asked(lambda: api.model_info(name), name, doing="look at it")
    if is_private and not info.private:
        raise ValueError(
            f"--private: {name} exists and is public; make it private in its settings there, or choose another name"
        )
    has_card = any(file.rfilename == _CARD for file in info.siblings or ())
    return PushTarget(repo_id=name, is_private=bool(info.private), has_card=has_card)


def push_export(folder: Path, target: PushTarget) -> str:
    """Upload an export, and return the repository's address; it is made where it does not exist.

    Args:
        folder: A complete export.
        target: As `check_push` returned it.

    Raises:
        ValueError: If the token may not write there.
        RuntimeError: If the upload fails; the export stays complete.
    """
    record = json.loads((folder / EXPORT_FILE).read_text(encoding="utf-8"))
    files = [name for name in record["files"] if not (name == _CARD and target.has_card)]
    _warn_of_local_base(folder)
    if target.has_card:
        logger.info("%s has a README.md, which stays; this export's is %s", target.repo_id, folder / _CARD)
    new = "new: public, unless its owner has set that new ones are private"
    visibility = {True: "private", False: "public", None: new}[target.is_private]
    num_bytes = sum((folder / name).stat().st_size for name in files)
    logger.info("uploading %d files, %.2f GB, to %s (%s)", len(files), num_bytes / 1e9, target.repo_id, visibility)
    api, repo_id = HfApi(), target.repo_id
    keep = f"{folder} has the complete export, and the same command tries again"
    private = True if target.is_private else None  # None: what the owner has set for new repositories
    _asked(
        lambda: api.create_repo(repo_id=repo_id, private=private, exist_ok=True), repo_id, doing="make it", after=keep
    )
    upload = partial(api.upload_folder, folder_path=folder, allow_patterns=files, delete_patterns=_WEIGHTS)
    message = f"{record['run']}: exported by versatune_ds"
    _asked(lambda: upload(repo_id=repo_id, commit_message=message), repo_id, doing="upload to it", after=keep)
    return f"{constants.ENDPOINT}/{target.repo_id}"


def _warn_of_local_base(folder: Path) -> None:
    """Warn where adapters name a base model by a path of this machine, which nobody else has."""
    path = folder / "adapter_config.json"
    base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path") if path.is_file() else None
    if base is not None and Path(base).exists():
        logger.warning(
            "adapter_config.json names the base model by a path of this machine (%s): others cannot load the adapters; "
            "write the model's Hub name there and push again, or export with --lora merged", base,
        )  # fmt: skip


def _asked(call: Callable[[], Any], repo_id: str, *, doing: str, after: str = "") -> Any:
    """Return what a call to the Hub returns; its errors become one line, without the token.

    Raises:
        ValueError: If the Hub refuses the token.
        RuntimeError: For any other failure.
    """
    end = f"; {after}" if after else ""
    try:
        return call()
    except Exception as error:  # huggingface_hub, httpx and the network each have their own
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status in (401, 403):
            raise ValueError(
                f"--push: the Hub refuses the token for {repo_id} ({status}): expected one that may write there "
                f"(HF_TOKEN, or `hf auth login`){end}"
            ) from error
        raise RuntimeError(f"--push: {repo_id}: could not {doing}: {first_line(error)}{end}") from error
