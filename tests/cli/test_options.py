"""An option is a field of a record: the command line, the YAML file, Python and the docs take it from there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, get_args

import numpy as np
import pytest
import typer
from conftest import Cli
from pydantic import Field
from typer.testing import CliRunner
from zoo import images

from calib.data.preprocess import PRESETS
from calib.data.readers import Selection
from hmc_onnx.api import FineTuning, Goal, Settings, Work, compress
from hmc_onnx.cli.commands import commands
from hmc_onnx.cli.config import merged, read_config
from hmc_onnx.cli.groups import GROUPS, Config, Images
from hmc_onnx.cli.help import COMMANDS
from hmc_onnx.cli.options import Given, Group, command
from hmc_onnx.cli.table import table
from hmc_onnx.cli.wording import in_options
from hmc_onnx.finetune.options import RATES
from hmc_onnx.records.options import Option
from passes.core.errors import DataError, SettingsError


class More(Settings):
    """The settings with one field more; nothing else is said of it anywhere."""

    patience: int = Field(default=3, ge=1, le=9, description="How long to wait [in minutes].")


def test_a_new_field_is_found_on_the_command_line_in_the_file_in_python_and_in_the_docs(tmp_path: Path) -> None:
    taken: list[Given] = []
    app = typer.Typer()
    command(app, "more", "Take more.", Group(More))(lambda given: taken.append(given))
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"})
    assert "--patience N How long to wait [in minutes]. Default: 3." in " ".join(shown.stdout.replace("│", "").split())
    assert CliRunner().invoke(app, ["--patience", "5", "--samples", "7"]).exit_code == 0
    made = taken.pop().of(More)
    assert (made.patience, made.samples, made.align) == (5, 7, None)

    groups, file = [Group(Config), Group(More)], tmp_path / "options.yaml"
    file.write_text("patience: 4\n")
    assert Given(groups, merged({"config": file, "patience": None}, groups)).of(More).patience == 4
    assert Given(groups, merged({"config": file, "patience": 6}, groups)).of(More).patience == 6
    file.write_text("patience: 20\n")
    with pytest.raises(SettingsError, match=f"'{file}': `patience` 20: input should be less than or equal to 9"):
        Given(groups, merged({"config": file}, groups)).of(More)
    with pytest.raises(SettingsError, match=r"^`patience` 12: input should be less"):
        Given(groups, merged({"config": file, "patience": 12}, groups), ["patience"]).of(More)
    file.write_text("patience: long\n")
    with pytest.raises(SettingsError, match="has 'long' for the option 'patience': write a whole number"):
        read_config(file, groups)
    file.write_text("patiense: 4\n")
    with pytest.raises(SettingsError, match="unknown option 'patiense': did you mean 'patience'\\?"):
        read_config(file, groups)

    assert More().patience == 3
    with pytest.raises(SettingsError, match="`patience` 10: input should be less than or equal to 9"):
        More(patience=10)

    row = next(line for line in table(groups).splitlines() if "patience" in line)
    assert row.split(" | ")[0] == "| `--patience`"
    assert "whole number, at least 1, at most 9 | 3 | How long to wait [in minutes]." in row


def test_the_page_of_options_is_current() -> None:
    page = Path(__file__).parents[2] / "docs" / "options.md"
    assert page.read_text() == table(), "run: python -m hmc_onnx.cli.table > docs/options.md"


def test_every_option_is_described_in_sentences_and_offered_once() -> None:
    declared: dict[str, set[object]] = {}
    for group in GROUPS:
        for field in group:
            assert (field.field.description or "").endswith("."), field.name
            assert field.help.endswith("."), field.name
            declared.setdefault(field.name, set()).add(field.type)
    assert all(len(types) == 1 for types in declared.values())  # where two records have a name, it is one option


def test_the_names_that_may_be_chosen_are_those_that_there_are() -> None:
    (presets,) = (t for t in get_args(Images.model_fields["preset"].annotation) if t is not type(None))
    assert set(get_args(presets)) == set(PRESETS)
    assert set(get_args(FineTuning.model_fields["optimizer"].annotation)) == set(RATES)


def test_options_that_need_another_are_refused_without_it() -> None:
    class Flag(Settings):
        wait: bool = Field(default=False, description="Wait.")

    groups = [Group(Flag, only=("wait", "samples")), Group(More, needs="wait")]
    with pytest.raises(SettingsError, match="`patience` only applies with `wait=True`"):
        Given(groups, {"patience": 5})
    Given(groups, {"patience": 5, "wait": True})
    Given(groups, {"samples": 5})  # an option of both


def test_a_field_of_several_values_is_an_option_that_may_be_repeated(tmp_path: Path) -> None:
    class Many(Settings):
        names: Annotated[tuple[str, ...], Option(metavar="NAME=KIND", example="[a=b]")] = Field(
            default=(), description="Names."
        )

    taken: list[Given] = []
    app, groups, file = typer.Typer(), [Group(Many)], tmp_path / "options.yaml"
    command(app, "many", "Take many.", *groups)(lambda given: taken.append(given))
    for arguments in ([], ["--names", "a=b"], ["--names", "a=b", "--names", "c=d"]):
        assert CliRunner().invoke(app, arguments).exit_code == 0
        assert taken.pop().of(Many).names == tuple(arguments[1::2])
    file.write_text("names: [a=b, c=d]\n")
    assert Given(groups, merged({"config": file, "names": []}, groups)).of(Many).names == ("a=b", "c=d")
    file.write_text("names: a=b\n")
    with pytest.raises(SettingsError, match=r"write a list, as in \[a=b\]"):
        read_config(file, groups)
    assert "text, may be repeated" in table(groups)


def test_options_for_python_only_are_not_offered() -> None:
    class Inner(Settings):
        inner: Annotated[int, Option(command_line=False, file=False)] = Field(default=1, description="Inner.")

    assert "inner" not in {field.name for field in Group(Inner)}
    row = next(line for line in table([Group(Inner)]).splitlines() if "inner" in line)
    assert row.startswith("|  | `Inner.inner`") or row.startswith("|  | `inner`")


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("give another `work_dir`, or", "give another --work-dir, or"),
        ("`batch` 5: the model takes 3", "--batch 5: the model takes 3"),
        ("export it or give `size=(HEIGHT, WIDTH)`", "export it or give --size HEIGHT WIDTH"),
        ("set `layout='NHWC'` and `size`", "set --layout NHWC and --size"),
        ("leave them out (`labels=None`)", "leave them out (--no-labels)"),
        ("again with `latency=True`", "again with --latency"),
        ("see `hmc-onnx latency measure` or `unheard` or `chunk`", None),
    ],
)
def test_messages_name_fields_and_the_command_line_its_options(message: str, words: str | None) -> None:
    assert in_options(message) == (message if words is None else words)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Settings(samples=0), "`samples` 0: input should be greater than or equal to 1"),
        (lambda: Settings(keep="fc"), "`keep` fc: input should be a valid tuple, such as ('fc',)"),  # type: ignore[arg-type]
        (lambda: Settings(provider="gpu"), "unknown provider 'gpu': use auto, or one that onnxruntime has here: cpu"),
        (lambda: Settings(smaples=8), "Settings has no option 'smaples': did you mean 'samples'?"),
        (lambda: Work(memory=float("nan")), "`memory` nan: input should be a finite number"),
        (lambda: Work(address="tcp://a:1"), "`address` goes with a cluster: give `backend='dask'`"),
        (lambda: FineTuning(epochs=0), "`epochs` 0: input should be greater than 0"),
        (lambda: FineTuning(epochs=1, minutes=1), "`epochs` and `minutes` were both given: give one"),
        (lambda: Goal(), "there is no goal: give `target`, such as latency=0.6, or `max_drop`, such as 0.01"),
        (lambda: Goal(max_drop=2), "`max_drop` 2: input should be less than 1"),
        (lambda: Goal(target="macs=2"), "target macs=2 is out of range: it is a share, above 0 and at most 1"),
        (lambda: Goal(target="macs=0.5", max_drop=0.1), "`target` and `max_drop` were both given: give one"),
        (lambda: Goal.of("max_drop=much"), "'max_drop=much' is not understood: max_drop is a share of the images"),
    ],
)  # fmt: skip
def test_records_refuse_in_one_sentence(make: object, says: str) -> None:
    with pytest.raises(SettingsError) as refused:
        make()  # type: ignore[operator]
    assert str(refused.value).startswith(says)
    assert "\n" not in str(refused.value)


def test_a_target_may_be_text() -> None:
    assert Goal(target="macs=0.5") == Goal.of("macs=0.5")


@pytest.mark.parametrize("command", ["compress", "finetune", "profile", "verify"])
def test_help_leaves_room_for_descriptions_at_80_columns(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = cli(command, "--help").out.splitlines()
    assert max(map(len, lines)) <= 80
    for heading in ("Model and files", "Data and preprocessing"):
        assert any(heading in line for line in lines)
    goes_on = [found for line in lines if (found := re.match(r"│ {10,}(?=\S)", line))]
    assert goes_on
    assert all(80 - found.end() - len(" │") >= 27 for found in goes_on)


def test_the_list_of_commands_is_that_of_the_commands() -> None:
    assert set(commands().commands) == set(COMMANDS)
    assert {name: command.help for name, command in commands().commands.items()} == COMMANDS


def test_help_and_version_are_found(cli: Cli) -> None:
    assert cli("-h").out == cli("--help").out
    assert cli("plan", "-h").out == cli("plan", "--help").out
    assert re.fullmatch(r"hmc-onnx \d+\.\d+\.\d+\S*\n", cli("--version").out)


def test_a_path_given_as_data_in_python_is_refused_in_one_sentence(given: Path) -> None:
    for path in (given / "splits.npz", str(given / "splits.npz")):
        with pytest.raises(
            DataError, match=r"given as the path '.*splits\.npz': read the images with hmc_onnx\.load_data"
        ):
            compress(given / "model.onnx", path, "macs=0.6")


def test_a_sample_that_is_no_number_is_counted_in_the_file(cli: Cli, given: Path, tmp_path: Path) -> None:
    samples = images(40, 8)
    samples[33, 0, 0, 0] = np.nan
    np.savez(tmp_path / "nan.npz", input=samples)
    seed = next(s for s in range(40) if 33 in Selection(20, s).of(40))
    arguments = ["--data", tmp_path / "nan.npz", "--samples", 20, "--seed", seed]
    done = cli("profile", given / "model.onnx", "-o", tmp_path / "profile.json", *arguments)
    assert done.code == 1
    assert "holds NaN or infinity in sample 33 of" in done.errors[0]


def test_commands_that_measure_offer_the_precision_that_is_served(cli: Cli) -> None:
    for name in ("compress", "profile"):
        said = cli(name, "--help").out
        assert all(option in said for option in ("--precision", "--calibration", "--judge"))
