"""The cache of title tokens: the same ids as without it, found again, and made anew when it must be."""

import logging
import multiprocessing
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llmrec.data.prepare import prepare
from llmrec.data.prepared import CACHE_FOLDER, load_prepared
from llmrec.data.title_tokens import TitleTokens
from modeling_llmrec import LLMRecConfig, LLMRecProcessor

WORDS = "red blue green bean leaf nut pan jug knife ;".split()
TITLES = [f"{a} {b} {c}" for a in WORDS[:3] for b in WORDS[3:6] for c in WORDS[6:9]]


def make_processor(words: list[str] = WORDS, **fields: Any) -> LLMRecProcessor:
    raw = Tokenizer(models.WordLevel({word: number for number, word in enumerate(["[UNK]", *words])}, "[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", pad_token="[UNK]")
    config = LLMRecConfig(text_config={"model_type": "bert"}, **{"max_title_tokens": 10, **fields})
    return LLMRecProcessor(tokenizer, config=config)


@pytest.fixture
def tokenised(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one number whenever titles are tokenised."""
    calls: list[int] = []
    plain = LLMRecProcessor.tokenize_titles

    def counting(self: LLMRecProcessor, titles: list[str]) -> list[list[int]]:
        calls.append(len(titles))
        return plain(self, titles)

    monkeypatch.setattr(LLMRecProcessor, "tokenize_titles", counting)
    return calls


def test_the_cache_holds_what_the_tokenizer_gives(tmp_path: Path, tokenised: list[int]) -> None:
    processor = make_processor()
    expected = processor.tokenize_titles(TITLES)
    first = TitleTokens.cached(processor, TITLES, tmp_path / "cache")
    again = TitleTokens.cached(make_processor(), TITLES, tmp_path / "cache")
    assert list(first) == list(again) == expected
    assert again.flat.dtype == np.int32 and again.offsets.dtype == np.int64
    # Views of the mapped file, not copies of it.
    assert not again.flat.flags.owndata and not again.flat.flags.writeable
    assert tokenised == [len(TITLES)] * 2  # the comparison itself, and once for the cache
    (file,) = (tmp_path / "cache").iterdir()
    assert file.name.startswith("title_tokens-") and file.suffix == ".arrow"


def test_no_titles_and_a_tokenizer_used_before(tmp_path: Path, tokenised: list[int]) -> None:
    assert len(TitleTokens.cached(make_processor(), [], tmp_path)) == 0
    assert len(TitleTokens.cached(make_processor(), [], tmp_path)) == 0
    # A tokenizer remembers how it was last asked to cut and pad; its ids do not depend on that.
    used = make_processor()
    used.tokenizer(["red bean", "nut"], padding=True, truncation=True, max_length=3)
    TitleTokens.cached(make_processor(), TITLES, tmp_path)
    before = len(tokenised)
    assert list(TitleTokens.cached(used, TITLES, tmp_path))
    assert len(tokenised) == before


@pytest.mark.parametrize(
    "change",
    [
        {"max_title_tokens": 2},
        {"item_separator": " ; red ; "},
        {"words": [*WORDS[1:], WORDS[0]]},
        {"titles": [*TITLES[1:], TITLES[0]]},
        {"titles": TITLES[:-1]},
        {"titles": ["red", "bean leaf"]},
    ],
)
def test_whatever_changes_the_ids_gets_a_file_of_its_own(tmp_path: Path, change: dict) -> None:
    TitleTokens.cached(make_processor(), TITLES, tmp_path)
    titles = change.pop("titles", TITLES)
    processor = make_processor(**change)
    assert list(TitleTokens.cached(processor, titles, tmp_path)) == processor.tokenize_titles(titles)
    assert len(list(tmp_path.iterdir())) == 2


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _garbage(file: Path) -> None:
    file.write_bytes(os.urandom(file.stat().st_size))


def _one_number_changed(file: Path) -> None:
    tokens = TitleTokens.cached(make_processor(), TITLES, file.parent)
    content = bytearray(file.read_bytes())
    # A byte in the middle of the ids themselves: Arrow reads the file without complaint.
    place = bytes(content).index(tokens.flat.tobytes()) + 4 * len(tokens.flat) // 2
    content[place] ^= 1
    file.write_bytes(bytes(content))


def _of_other_titles(file: Path) -> None:
    TitleTokens.cached(make_processor(), TITLES[::-1], file.parent)
    (other,) = set(file.parent.iterdir()) - {file}
    os.replace(other, file)


@pytest.mark.parametrize("damage", [_truncate, _empty, _garbage, _one_number_changed, _of_other_titles])
def test_a_damaged_file_is_made_anew_with_a_warning(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    processor = make_processor()
    expected = list(TitleTokens.cached(processor, TITLES, tmp_path))
    (file,) = tmp_path.iterdir()
    damage(file)
    with caplog.at_level("WARNING", logger="llmrec"):
        assert list(TitleTokens.cached(processor, TITLES, tmp_path)) == expected
    assert len(caplog.records) == 1 and str(file) in caplog.text and "made anew" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING", logger="llmrec"):
        assert list(TitleTokens.cached(processor, TITLES, tmp_path)) == expected
    assert not caplog.records and [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("not a folder")
    processor = make_processor()
    with caplog.at_level(logging.INFO, logger="llmrec"):
        tokens = TitleTokens.cached(processor, TITLES, tmp_path / "file" / "cache")
    assert list(tokens) == processor.tokenize_titles(TITLES)
    assert "kept in memory only" in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with caplog.at_level(logging.INFO, logger="llmrec"):
            assert len(TitleTokens.cached(make_processor(), TITLES, tmp_path)) == len(TITLES)
    finally:
        tmp_path.chmod(stat.S_IRWXU)
    assert "kept in memory only" in caplog.text and not list(tmp_path.iterdir())


def test_a_tokenizer_without_a_description_is_not_cached(tmp_path: Path) -> None:
    processor = make_processor()
    described = processor.tokenizer

    class Undescribed:
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return described(*args, **kwargs)

    odd = SimpleNamespace(tokenizer=Undescribed(), config=processor.config, tokenize_titles=processor.tokenize_titles)
    assert list(TitleTokens.cached(odd, TITLES, tmp_path)) == processor.tokenize_titles(TITLES)
    assert not list(tmp_path.iterdir())


def _cache_in_a_process(folder: Path, results: Any) -> None:
    results.put(list(TitleTokens.cached(make_processor(), TITLES, folder)))


def test_several_processes_may_start_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_cache_in_a_process, args=(tmp_path, results)) for _ in range(4)]
    for process in processes:
        process.start()
    expected = make_processor().tokenize_titles(TITLES)
    assert all(results.get(timeout=60) == expected for _ in processes)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(list(tmp_path.iterdir())) == 1


def test_prepared_data_may_hold_a_cache(tmp_path: Path) -> None:
    from llmrec.data.source import Source

    (tmp_path / "items.csv").write_text("item_id,title,domain\n" + "".join(f"i{i},red {i},Food\n" for i in range(4)))
    events = [(user, item, 1_600_000_000 + item) for user in range(3) for item in range(4)]
    lines = "".join(f"u{user},i{item},Food,{time}\n" for user, item, time in events)
    (tmp_path / "events.csv").write_text("user_id,item_id,domain,timestamp\n" + lines)
    folder = tmp_path / "prepared"
    prepare([Source(tmp_path / "events.csv", tmp_path / "items.csv")], folder, k_core=0)
    data = load_prepared(folder)
    TitleTokens.cached(make_processor(), data.catalogue.titles, folder / CACHE_FOLDER)
    assert load_prepared(folder).hash == data.hash
    # Preparing again replaces the folder, cache and all.
    prepare([Source(tmp_path / "events.csv", tmp_path / "items.csv")], folder, k_core=0, overwrite=True)
    assert not (folder / CACHE_FOLDER).exists()
