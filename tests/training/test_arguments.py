"""Arguments from YAML and flags, and what is refused with which words."""

from pathlib import Path

import pytest
import torch
import yaml

from llmrec.training import precision
from llmrec.training.data import ensure_prepared
from llmrec.training.data_arguments import DataArguments
from llmrec.training.model_arguments import ModelArguments
from llmrec.training.parsing import ArgumentsError, parse_arguments
from llmrec.training.run import main
from llmrec.training.run_folder import RunFolder, RunFolderError, resolved_config, write_yaml

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))
NEEDED = ["--data", "prepared/shop", "--run_dir", "runs/x"]


def _file(folder: Path, **content: object) -> str:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump({"data": "prepared/shop", "run_dir": "runs/x", **content}))
    return str(file)


def test_flags_override_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    file = _file(
        tmp_path, learning_rate="3e-4", tuning="full", eval_users=None, test_protocols=["full", "domain"],
        logq_correction=True, load_best_model_at_end=False, warmup_steps=0, sources=[],
    )  # fmt: skip
    model, data, training = parse_arguments([file, "--tuning", "lora", "--seed", "7", "--test_protocols", "full"])
    assert (model.tuning, data.data, training.run_dir) == ("lora", "prepared/shop", "runs/x")
    assert training.learning_rate == 3e-4 and training.seed == training.data_seed == 7
    assert training.eval_users is None and training.test_protocols == ["full"] and training.logq_correction
    assert training.load_best_model_at_end is False and training.output_dir == "runs/x/checkpoints"
    assert parse_arguments([file, "--eval_users", "5"])[2].eval_users == 5
    assert parse_arguments([file, "--logq_correction", "false"])[2].logq_correction is False
    assert parse_arguments([file, "--load_best_model_at_end"])[2].load_best_model_at_end is True


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_of_the_project_is_read(config: Path) -> None:
    model, data, training = parse_arguments([str(config)])
    assert training.run_dir == f"runs/{config.stem}" and data.has_raw_files
    data.prepare_options().make_sources()
    training.resolve_defaults(model.tuning, model.contrastive_loss)


def test_there_are_recipes() -> None:
    assert {path.stem for path in CONFIGS} >= {"demo", "food_kitchen", "scientific", "paper"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"learnin_rate": 1}, r"recipe\.yaml: unknown key 'learnin_rate'; did you mean learning_rate"),
        ({"zzz": 1}, r"recipe\.yaml: unknown key 'zzz'; `train\.py --help`"),
        ({"lora_r": "many"}, r"recipe\.yaml: key 'lora_r': argument --lora_r.*invalid int value: 'many'"),
        ({"tuning": "half"}, r"recipe\.yaml: key 'tuning'.*invalid choice: 'half'"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(tmp_path: Path, content: dict, message: str) -> None:
    with pytest.raises(ArgumentsError, match=message):
        parse_arguments([_file(tmp_path, **content)])


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ArgumentsError, match=r"nothing\.yaml: cannot be read"):
        parse_arguments([str(tmp_path / "nothing.yaml")])
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(ArgumentsError, match=r"list\.yaml: must be a mapping .* not list"):
        parse_arguments([str(tmp_path / "list.yaml")])
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(ArgumentsError, match=r"broken\.yaml: is not YAML"):
        parse_arguments([str(tmp_path / "broken.yaml")])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learn_rate", "1"], r"unknown argument '--learn_rate'; did you mean --learning_rate"),
        (["--eval_user", "5"], r"unknown argument '--eval_user'; did you mean --eval_users"),
        (["--save_form", "adapter", "--tuning", "full"], "save_form='adapter' needs tuning='lora'"),
        (["--tuning", "frozen"], "nothing to train without a head: set projection_dim"),
        (["--lora_r", "0"], "lora_r=0"),
        (["--lora_dropout", "1"], "lora_dropout=1.0"),
        (["--fp16"], "fp16=true is not supported here; say precision: bf16"),
        (["--bf16"], "bf16=true: say precision: bf16"),
        (["--deepspeed", "ds.json"], "deepspeed='ds.json' is not supported here; start with accelerate launch"),
        (["--push_to_hub"], "publish the finished run with push_to_hub.py"),
        (["--resume_from_checkpoint", "x"], "say resume"),
        (["--resume", "--overwrite"], "resume and overwrite exclude each other"),
        (["--resume", "no/such/folder"], "neither true, false, nor a checkpoint folder"),
        (["--output_dir", "elsewhere"], "checkpoints belong to run_dir"),
        (["--max_train_examples", "0"], "max_train_examples=0 must be at least 1"),
        (["--early_stopping_patience", "2", "--eval_strategy", "no"], "early_stopping_patience needs evaluations"),
        (["--train_sampling_strategy", "sequential"], "none of 'random', 'group_by_length'"),
        (["--dataloader_persistent_workers"], "workers must learn of each new epoch"),
        (["--columns", "user"], "'user' is not of the form OURS=THEIRS"),
        (["--eval_protocol", "half"], "unknown protocol 'half'"),
        (["--test_protocols", "full", "ful"], "unknown protocol 'ful'"),
        (["--metric_for_best_model", "eval_loss"], "metric_for_best_model='eval_loss' is none of eval_ndcg@10"),
    ],
)
def test_what_excludes_each_other_is_said(flags: list[str], message: str) -> None:
    with pytest.raises(ArgumentsError, match=message):
        parse_arguments([*NEEDED, *flags])


def test_what_must_be_given() -> None:
    with pytest.raises(ArgumentsError, match="run_dir is not given"):
        parse_arguments(["--data", "x"])
    with pytest.raises(ArgumentsError, match="data is not given"):
        parse_arguments(["--run_dir", "x"])


def test_defaults_by_tuning_and_loss() -> None:
    expected = {"lora": 2e-4, "full": 5e-5, "frozen": 1e-3}
    for tuning, rate in expected.items():
        _, _, training = parse_arguments([*NEEDED, "--tuning", tuning, "--projection_dim", "8"])
        training.resolve_defaults(tuning, "sampled_softmax")
        assert training.learning_rate == rate and training.negatives_per_example == 10
    _, _, training = parse_arguments([*NEEDED, "--learning_rate", "1e-5"])
    training.resolve_defaults("full", "bce")
    assert training.learning_rate == 1e-5 and training.negatives_per_example == 1
    _, _, training = parse_arguments([*NEEDED, "--negatives_per_example", "0"])
    with pytest.raises(ValueError, match="negatives_per_example=0: contrastive_loss='bce' needs at least 1"):
        training.resolve_defaults("full", "bce")
    training.resolve_defaults("full", "in_batch")
    _, _, training = parse_arguments([*NEEDED, "--logq_correction"])
    with pytest.raises(ValueError, match="logq_correction=True needs contrastive_loss='in_batch'"):
        training.resolve_defaults("full", "sampled_softmax")


def test_only_what_was_asked_for_overrides_the_preset() -> None:
    assert ModelArguments().config_overrides == {}
    asked = ModelArguments(pooling="cls", normalize=False, learn_temperature=True, item_separator="")
    assert asked.config_overrides == {
        "pooling": "cls", "normalize": False, "learn_temperature": True, "item_separator": "",
    }  # fmt: skip


# -- precision -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "has_bf16", "expected"),
    [("auto", True, "bf16"), ("auto", False, "fp32"), ("fp32", True, "fp32"), ("bf16", False, "bf16")],
)
def test_precision_on_a_processor(monkeypatch: pytest.MonkeyPatch, wanted: str, has_bf16: bool, expected: str) -> None:
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: has_bf16)
    found, reason = precision.resolve_precision(wanted, on_cpu=True)
    assert found == expected and reason
    with pytest.raises(ValueError, match="'half' is none of"):
        precision.resolve_precision("half", on_cpu=True)


def test_bf16_is_refused_where_the_gpu_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert precision.resolve_precision("auto", on_cpu=False)[0] == "fp32"
    with pytest.raises(ValueError, match="this accelerator has no bf16"):
        precision.resolve_precision("bf16", on_cpu=False)


# -- run folder and data ---------------------------------------------------------------------------


def test_a_resolved_configuration_reads_back_as_itself(tmp_path: Path) -> None:
    arguments = parse_arguments([*NEEDED, "--warmup_steps", "0.1", "--lora_target_modules", "query", "value"])
    arguments[2].resolve_defaults("lora", "in_batch")
    config = resolved_config(*arguments)
    write_yaml(tmp_path / "config.yaml", config)
    again = parse_arguments([str(tmp_path / "config.yaml")])
    assert resolved_config(*again) == config
    assert config["lora_target_modules"] == ["query", "value"] and config["warmup_steps"] == 0.1


def test_a_run_folder_is_new_then_unfinished_then_finished(tmp_path: Path) -> None:
    folder, config = RunFolder(tmp_path / "run"), {"lora_r": 8, "seed": 1, "disable_tqdm": True}
    plain = {"resume": False, "overwrite": False}
    assert folder.check(config, **plain) == "new" and not folder.path.exists()
    folder.begin(config, overwrite=False)
    with pytest.raises(RunFolderError, match="already holds an unfinished run: go on with --resume"):
        folder.check(config, **plain)
    assert folder.check({**config, "disable_tqdm": False}, resume=True, overwrite=False) == "unfinished"
    differing = r"another configuration:\n  lora_r: 8 there, 4 now\n  seed: 1 there, 2 now"
    with pytest.raises(RunFolderError, match=differing):
        folder.check({**config, "lora_r": 4, "seed": 2}, resume=True, overwrite=False)
    folder.results.write_text("{}")
    with pytest.raises(RunFolderError, match="already holds a finished run"):
        folder.check(config, **plain)
    assert folder.check(config, resume=True, overwrite=False) == "finished"
    assert folder.check({**config, "lora_r": 4}, resume=False, overwrite=True) == "new"
    folder.begin({**config, "lora_r": 4}, overwrite=True)
    assert folder.state == "unfinished" and yaml.safe_load(folder.config.read_text())["lora_r"] == 4


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(RunFolderError, match="holds model but no config.yaml, so it is no run"):
            RunFolder(tmp_path).check({}, resume=False, overwrite=overwrite)


def test_prepared_data_of_other_options_is_refused(tiny_raw: Path, tiny_prepared: Path) -> None:
    files = {"interactions": str(tiny_raw / "interactions.csv"), "items": str(tiny_raw / "items.csv")}
    ensure_prepared(DataArguments(data=str(tiny_prepared), k_core=0, **files))
    ensure_prepared(DataArguments(data=str(tiny_prepared), k_core=5))  # no raw files: the folder is what counts
    with pytest.raises(ValueError, match="was prepared with k_core=0, and k_core=5 is asked for now"):
        ensure_prepared(DataArguments(data=str(tiny_prepared), **files))
    with pytest.raises(ValueError, match=r"prepared with domains=None, and domains=\['Food'\]"):
        ensure_prepared(DataArguments(data=str(tiny_prepared), k_core=0, domains=["Food"], **files))


def test_bad_data_leaves_no_run_folder(tiny_backbone: Path, tmp_path: Path) -> None:
    arguments = ["--backbone", str(tiny_backbone), "--run_dir", str(tmp_path / "run"), "--use_cpu"]
    with pytest.raises(ValueError, match="no data_card.json in this folder"):
        main([*arguments, "--data", str(tmp_path / "nothing")])
    with pytest.raises((OSError, ValueError), match=str(tmp_path)):
        main([*arguments, "--data", str(tmp_path), "--backbone", str(tmp_path)])
    assert not (tmp_path / "run").exists()
