"""The tokenizer of a saved model: read with errors that say what is missing, written the same at every save."""

import os
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

# What transformers adds to tokenizer_config.json about the machine that it was loaded on.
OF_THIS_MACHINE = ("is_local", "local_files_only")


def read_tokenizer(name_or_path: str | os.PathLike, config: Any, **kwargs: Any) -> Any:
    """The tokenizer of a saved model.

    Args:
        name_or_path: folder or Hub id.
        config: the model's `LLMRecConfig`.
        **kwargs: as in transformers.

    Raises:
        OSError: a file of it is missing or damaged.
        ValueError: it has more tokens than the model has embeddings.
    """
    try:
        # With the backbone's config the tokenizer is chosen as it was for the backbone, and no code is asked for.
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, config=config.text_config, **kwargs)
    except Exception as error:  # the tokenizers library raises nothing more particular
        raise OSError(
            f"The tokenizer of {str(name_or_path)!r} cannot be read: tokenizer.json or tokenizer_config.json is "
            f"missing or damaged. Fetch or save the model again. Cause: {error}"
        ) from error
    check_vocabulary(tokenizer, config, name_or_path)
    return tokenizer


def check_vocabulary(tokenizer: Any, config: Any, name_or_path: str | os.PathLike) -> None:
    """Refuse a tokenizer whose ids the model cannot look up: it is another model's.

    Raises:
        ValueError: naming both sizes.
    """
    rows = getattr(config.text_config, "vocab_size", None)
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if rows is not None and largest >= rows:
        raise ValueError(
            f"The tokenizer of {str(name_or_path)!r} has ids up to {largest}, and the model has {rows} embeddings "
            "(text_config.vocab_size): tokenizer.json belongs to another model. Fetch or save the model again."
        )


def save_tokenizer(tokenizer: Any, folder: str | os.PathLike) -> None:
    """Write the tokenizer's files; they do not depend on what was read before, nor on where it was loaded from."""
    if tokenizer.is_fast:
        # Left over from the last call, these would be saved too.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    for name in OF_THIS_MACHINE:
        tokenizer.init_kwargs.pop(name, None)
    tokenizer.save_pretrained(Path(folder))
