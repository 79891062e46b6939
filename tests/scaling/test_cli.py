"""The command line: typed settings that reach the plan, and refusals in one line that names the setting."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml  # type: ignore[import-untyped]
from experiment_script import ROOT, load_script, write_text

from toolkit.scaling import IsoFLOP, Study
from toolkit.scaling.cli import read_study, run_experiment
from toolkit.scaling.sparsity.cli import read_sparsity

SCRIPT = ROOT / "experiments" / "dense_vs_sparse.py"
PRESETS = ROOT / "experiments" / "presets"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("dense_vs_sparse")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture
def base(text: Path, tmp_path: Path) -> list[str]:
    """A small study that can be planned."""
    settings = {
        "corpus.paths": f"[{text}]",
        "corpus.validation_share": "0.3",
        "cache": str(text.parent / "cache"),
        "training.context": "32",
        "training.batch_size": "4",
        "validation_windows": "20",
        "grid.budgets": "[{flops: 4e8, dims: [16]}]",
        "grid.families": "[dense, moe]",
        "model.arms": "[{name: dense}, {name: moe, num_experts: 4}]",
        "out": str(tmp_path / "study"),
    }
    return [part for name, value in settings.items() for part in (f"--{name}", value)]


Refusal = Callable[..., str]


@pytest.fixture
def refusal(
    script: ModuleType,
    base: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Refusal:
    """Run the study with more arguments; it must end with one line, which is returned, and leave nothing."""

    def refused(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["dense_vs_sparse.py", *base, *arguments])
        with pytest.raises(SystemExit) as end:
            run_experiment(script.main)
        assert end.value.code == 2
        output = capsys.readouterr()
        (line,) = output.err.splitlines()
        assert line.startswith("error: ")
        assert "Traceback" not in output.out
        assert not (tmp_path / "study").exists()
        return line.removeprefix("error: ")

    return refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--preset nope", "preset='nope': it must be one of 'cluster', 'demo', 'gpu', 'laptop'"),
        ("--preset", "argument --preset: expected one argument"),
        ("--training.context 100000", "context=100000: it must be at most "),
        ("--validation_windows 5000", "validation_windows=5000: it must be at most "),
        ("--model.arms [{name:x,num_experts:4,top_k:9}]", "top_k=9: it must be at most num_experts=4"),
        ("--model.queries_per_kv_head 2", "queries_per_kv_head=2: it must be a divisor of the 1 heads at dim=16"),
        ("--model.arms [{name:x,balance:-1}]", "balance=-1.0: it must be 0 or more"),
        ("--grid.budgets [{flops:1000,dims:[16]}]", "flops=1000.0: it must be at least "),
        ("--grid.budgets [{flops:1.5e7,dims:[16]}]", "flops=15000000.0: it must be within 1% of a whole number"),
        ("--grid.budgets [{flops:4e8,dims:[15]}]", "dims=15: it must be a multiple of 2"),
        ("--grid.families []", "families=(): it must be at least one among dense, moe"),
        ("--grid.families [dens]", "families='dens': it must be among dense, moe"),
        ("--grid.seeds 0", "seeds=0: it must be positive"),
        ("--training.schedule linear", "schedule='linear': it must be one of 'cosine', 'wsd'"),
        ("--corpus.vocab_size 100", "vocab_size=100: it must be 256 with tokenizer='bytes'"),
        ("--corpus.paths [/nowhere/at/all]", "paths='/nowhere/at/all': it must be an existing file or folder"),
        ("--devices 3", "batch_size=4: it must be a multiple of data * shard = 3 * 1 = 3"),
        ("--devices 2 --workers 2", "workers=2: it must be 0 or 1 when a run has several devices"),
        ("--devices 0", "devices=0: it must be positive"),
        ("--strategy fsdp", "strategy='fsdp': it must be one of 'auto', 'ddp'"),
        ("--workers -1", "workers=-1: it must be 0 (automatic) or more"),
        ("--threads 0", "threads=0: it must be positive"),
        ("--launcher nope", "launcher='nope': it must be one of 'local', 'slurm'"),
        ("--launcher slurm --workers 2", "workers=2: it must be 0 with launcher='slurm', which has jobs_at_once"),
        ("--launcher slurm --devices 2", "launcher='slurm': it must be 'local' when a run has several devices"),
        ("--slurm.gpus_per_task 2", "gpus_per_task=2: it must be 0 or 1: a run has one device"),
        ("--slurm.jobs_at_once 0", "jobs_at_once=0: it must be positive"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_with_what_would_be_right(
    refusal: Refusal, arguments: str, message: str
) -> None:
    values = arguments.replace(":", ": ").replace(",", ", ") if "{" in arguments else arguments
    parts = values.split(" ", 1) if "{" in values else values.split()
    assert refusal(*parts).startswith(message)


@pytest.mark.parametrize(
    ("arguments", "named", "suggested"),
    [
        (("--model.layrs", "3"), "--model.layrs", "model.layers"),
        (("--grid.sedes", "3"), "--grid.sedes", "grid.seeds"),
        (("--training.batchsize=3",), "--training.batchsize", "training.batch_size"),
        (("--worker_count", "3"), "--worker_count", None),
        (("--training.learning_rate_", "3"), "--training.learning_rate_", None),
        (("stray",), "stray", None),
    ],
)
def test_a_misspelled_setting_is_refused_with_the_nearest_that_exists(
    refusal: Refusal, arguments: tuple[str, ...], named: str, suggested: str | None
) -> None:
    line = refusal(*arguments)
    assert named in line
    assert suggested is None or line.endswith(f"did you mean {suggested}?")


@pytest.mark.parametrize(
    ("content", "named", "suggested"),
    [
        ({"model": {"layrs": 3}}, "layrs", "model.layers"),
        ({"grids": {"seeds": 3}}, "grids.seeds", "grid.seeds"),
        ({"trainin": {"context": 16}}, "trainin.context", "training.context"),
        ({"grid": {"budgets": [{"flop": 4e8, "dims": [16]}]}}, "flop", None),
        ({"training": {"steps": 10}}, "steps", None),  # the plan sets it
        ({"training": {"batch_size": "four"}}, "training.batch_size", None),
        ({"model": {"layers": 1.5}}, "model.layers", None),
        ({"grid": {"budgets": 3}}, "grid.budgets", None),
    ],
)
def test_a_bad_file_of_settings_is_refused(
    refusal: Refusal, tmp_path: Path, content: object, named: str, suggested: str | None
) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    line = refusal("--config", str(tmp_path / "mine.yaml"))
    assert named in line
    assert suggested is None or line.endswith(f"did you mean {suggested}?")


def test_a_file_of_settings_that_is_not_there_or_not_yaml(refusal: Refusal, tmp_path: Path) -> None:
    assert "none.yaml" in refusal("--config", str(tmp_path / "none.yaml"))
    (tmp_path / "broken.yaml").write_text("model: {top_k: [}\n")
    assert "config" in refusal("--config", str(tmp_path / "broken.yaml"))


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("grid.seeds", "two", "int"),
        ("model.layers", "1.5", "int"),
        ("training.batch_size", "four", "int"),
        ("training.weight_decay", "some", "float"),
        ("model.tied_head", "maybe", "bool"),
        ("grid.budgets", "7", "tuple"),
    ],
)
def test_a_value_of_another_type_is_refused(refusal: Refusal, name: str, value: str, kind: str) -> None:
    line = refusal(f"--{name}", value)
    assert name in line
    assert kind in line
    assert value in line


def test_an_empty_corpus_is_refused(refusal: Refusal, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "it must be a folder that holds files" in refusal("--corpus.paths", f"[{tmp_path / 'empty'}]")
    (tmp_path / "blank.txt").write_text("")
    assert "it must be given at least two documents" in refusal("--corpus.paths", f"[{tmp_path / 'blank.txt'}]")


@pytest.mark.parametrize(("setting", "named"), [("--out", "out="), ("--cache", "cache_dir=")])
def test_a_folder_that_cannot_be_made_is_refused(refusal: Refusal, tmp_path: Path, setting: str, named: str) -> None:
    (tmp_path / "file").write_text("here first")
    assert refusal(setting, str(tmp_path / "file" / "below")).startswith(named)
    assert (tmp_path / "file").read_text() == "here first"


def test_gpus_that_are_not_there_are_refused(base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    study, _ = read_study([*base, "--accelerator", "gpu"], PRESETS, "")
    with pytest.raises(ValueError, match="devices=1: it must be at most 0, the CUDA GPUs of this machine"):
        study.claim_folder()
    assert not study.folder.settings.exists()


def test_settings_refused_once_do_not_keep_the_folder_from_the_right_ones(refusal: Refusal, base: list[str]) -> None:
    refusal("--grid.budgets", "[{flops: 10, dims: [16]}]")
    study, _ = read_study(base, PRESETS, "")
    study.claim_folder()
    assert study.folder.settings.exists()


def test_from_a_shell_it_is_one_line_and_exit_code_2(base: list[str], tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), *base, "--model.arms", "[{name: x, num_experts: 4, top_k: 9}]"]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""}
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert run.returncode == 2
    assert run.stderr == "error: top_k=9: it must be at most num_experts=4\n"
    assert run.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_what_fails_in_training_keeps_its_traceback() -> None:
    def main(arguments: object) -> None:
        raise RuntimeError("run moe failed") from ValueError("of torch")

    with pytest.raises(RuntimeError, match="run moe failed"):
        run_experiment(main)


@pytest.mark.parametrize("error", [ImportError("install\nthat"), OSError("disk full")])
def test_what_the_machine_lacks_is_one_line_too(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def main(arguments: object) -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run_experiment(main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: " + " ".join(str(error).split()) + "\n"


def test_stopping_it_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def main(arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["dense_vs_sparse.py"])
    with pytest.raises(SystemExit) as end:
        run_experiment(main)
    assert end.value.code == 130
    assert capsys.readouterr().err == "stopped; the same command goes on with the next unfinished run\n"


def test_dry_run_prints_the_plan_and_trains_nothing(
    script: ModuleType, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.main([*base, "--dry-run"])
    output = capsys.readouterr().out
    for column in ("params", "active", "tokens", "epochs", "steps", "FLOPs", "MB", "time s"):
        assert column in output
    assert "4 runs on" in output
    study, dry_run = read_study([*base, "--dry-run"], PRESETS, "")
    assert dry_run
    assert all(run.name in output for run in study.runs)
    assert not (tmp_path / "study").exists()


def test_overrides_of_every_part_reach_the_study(base: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model: {layers: 3}\ntraining: {weight_decay: 0.5}\n")
    more = {
        "config": str(tmp_path / "mine.yaml"),
        "grid.budgets": "[{flops: 1e9, dims: [16, 24]}, {flops: 3e9, dims: [24], families: [dense]}]",
        "grid.families": "[dense, moe]",
        "grid.seeds": "3",
        "model.arms": "[{name: dense}, {name: moe, num_experts: 4, top_k: 3, "
        "patterns: ['Causal() & SlidingWindow(9)']}]",
        "training.schedule": "wsd",
        "training.log_every": "7",
        "devices": "2",
        "strategy": "ddp",
        "accelerator": "cpu",
        "threads": "2",
    }
    study, dry_run = read_study(
        [*base, *(x for name, value in more.items() for x in (f"--{name}", value))], PRESETS, ""
    )
    assert isinstance(study, Study)
    assert not dry_run
    assert study.grid.budgets == (IsoFLOP(1e9, (16, 24)), IsoFLOP(3e9, (24,), ("dense",)))
    assert study.shape.layers == 3
    assert (study.parallel.devices, study.parallel.strategy, study.parallel.accelerator) == (2, "ddp", "cpu")
    assert study.folder.path == tmp_path / "study"
    assert len(study.runs) == (2 * 2 + 1) * 3
    sparse = next(run for run in study.runs if run.family == "moe")
    assert sparse.model.blocks[0].feed_forward.top_k == 3  # type: ignore[union-attr]
    assert sparse.model.blocks[0].attention.pattern == "Causal() & SlidingWindow(9)"
    assert (sparse.training.schedule, sparse.training.log_every, sparse.training.weight_decay) == ("wsd", 7, 0.5)


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_every_preset_can_be_read(preset: str) -> None:
    study = read_sparsity(["--preset", preset], PRESETS, "", Path("runs"))[0].base
    assert study.folder.path == Path("runs") / preset
    assert {"dense", "moe"} <= set(study.shape.families)


def test_demo_is_the_preset_unless_said_otherwise() -> None:
    assert read_study([], PRESETS, "")[0].settings == read_study(["--preset", "demo"], PRESETS, "")[0].settings


def test_what_only_says_where_and_how_is_no_part_of_the_settings(base: list[str]) -> None:
    settings = read_study(base, PRESETS, "")[0].settings
    more = ["--out", "x", "--cache", "y", "--threads", "2", "--devices", "2", "--strategy", "ddp", "--dry-run"]
    assert read_study([*base, *more], PRESETS, "")[0].settings == settings
    assert read_study([*base, "--grid.seeds", "5"], PRESETS, "")[0].settings != settings
    assert set(yaml.safe_load(settings)) == {"corpus", "model", "grid", "training", "validation_windows"}
