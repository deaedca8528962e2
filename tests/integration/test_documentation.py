"""What the documents say is so: their commands work, their tables are the schema's, and what they name is there.

Each document's commands run in order in one folder that looks like a clone, in which `configs/demo.yaml` is a smaller
run; the commands themselves are not changed.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from launch.machine import free_ports
from tests.training import ROOT, TEXT, environment, json_lines
from trainer.config import Config, GenerationConfig, SearchConfig
from trainer.config_io import load_config, load_search
from trainer.errors import DrumlineError

DOCUMENTS = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
# What a clone has, and what the set-up adds to it.
LINKED = ("CONTRIBUTING.md", "Makefile", "README.md", "benchmarks", "docs", "install", "k8s", "launch", "tests", "trainer")
# The same demo in seconds: fewer steps, less of a model.
SMALLER = {
    "vocabulary_size: 2048": "vocabulary_size: 400",
    "sequence_length: 128": "sequence_length: 64",
    "num_layers: 4": "num_layers: 1",
    "num_heads: 4": "num_heads: 2",
    "width: 128": "width: 16",
    "warmup_steps: 30": "warmup_steps: 5",
    "steps: 400": "steps: 20",
    "batches: 10": "batches: 2",
}
# The tables of all keys, and what they are the keys of.
TABLES = (("docs/configuration.md", Config), ("docs/search.md", SearchConfig))
# What a part of a configuration is a part of, where it names its task.
RECIPES = {"classification": "sentiment", "translation": "translation"}
NUM_CHARACTERS = 60_000
COMMAND_SECONDS = 240.0
TENSORBOARD_SECONDS = 120.0

# Targets that another target needs: whoever runs that one runs them.
SET_UP_TARGETS = {"setup": "$(SET_UP)", "horovod": "$(HOROVOD)"}
# Targets that nothing runs by itself, and why.
TARGETS_FOR_PEOPLE = {
    "bench": "measures, for hours, and its figures mean something on a quiet machine alone",
    "audit": "asks the package index, which need not be in reach, and knows more from day to day",
    "test-benchmarks": "starts forty trainings for a quarter of an hour",
    "fuzz": "tries new changes each time, for minutes; `make test` tries the same few dozens",
    "faults": "injects faults for minutes to hours; its quick part is in `make test`",
    "rehearse-slurm": "needs Slurm's daemons, which hardly any machine has",
    "image-rehearsal": "builds a Debian and an image for a quarter of an hour",
}


@dataclass(frozen=True)
class Clone:
    """A folder in which a document's commands were run, and what each of them printed."""

    path: Path
    environment: Mapping[str, str]
    printed: Mapping[str, str]


def blocks(document: str, language: str) -> list[str]:
    """The contents of a document's fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)


def prose(document: str) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"^```\w*\n.*?^```$", "", (ROOT / document).read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(document: str) -> list[str]:
    lines = "".join(blocks(document, "sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def is_for_make(command: str) -> bool:
    return shlex.split(command)[0] == "make"


def is_for_tensorboard(command: str) -> bool:
    return Path(shlex.split(command)[0]).name == "tensorboard"


def rows(document: str, columns: Sequence[str]) -> list[list[str]]:
    """The rows of all tables of a document that have these columns; a `|` within a cell is written `\\|`."""
    found, is_wanted = [], False
    for line in (ROOT / document).read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not line.startswith("|"):
            is_wanted = False
        elif cells == list(columns):
            is_wanted = True
        elif is_wanted and set(line) - set("|- "):
            found.append(cells)
    return found


def in_code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def schema_keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of a configuration: those of a list's items are written `list[].key`, of a mapping's `mapping.NAME.key`."""
    for name, info in model.model_fields.items():
        key, inner = f"{prefix}{name}", list(models_in(info.annotation))
        is_list = get_origin(info.annotation) is tuple
        if is_list or not inner:
            yield key, info
        for section in inner:
            is_mapping = get_origin(info.annotation) is dict
            yield from schema_keys(section, f"{key}[]." if is_list else f"{key}.NAME." if is_mapping else f"{key}.")


def models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def choices_in(annotation: object) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for argument in get_args(annotation):
            yield from choices_in(argument)


def written_default(cell: str) -> object:
    """What a cell of the column `default` says: "required", or a value as the YAML file would have it."""
    return cell if cell == "required" else yaml.safe_load(in_code(cell)[0])


def true_default(info: FieldInfo) -> object:
    default = "required" if info.is_required() else info.get_default()
    return list(default) if isinstance(default, tuple) else default


# What can be seen without running anything.


@pytest.mark.parametrize(("document", "schema"), TABLES)
def test_the_configuration_table_has_every_key_of_the_schema_with_its_default(document: str, schema: type[BaseModel]) -> None:
    written = {
        key: written_default(default)
        for keys, default, _ in rows(document, ("key", "default", "meaning"))
        for key in in_code(keys)
    }
    true = {key: true_default(info) for key, info in schema_keys(schema)}
    assert written.keys() - true.keys() == set(), "these keys do not exist"
    assert true.keys() - written.keys() == set(), "these keys are not explained"
    assert {key: (type(value), value) for key, value in written.items()} == {
        key: (type(value), value) for key, value in true.items()
    }


@pytest.mark.parametrize("document", [document for document, _ in TABLES])
def test_the_configuration_table_explains_no_key_twice(document: str) -> None:
    keys = [key for row in rows(document, ("key", "default", "meaning")) for key in in_code(row[0])]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(("document", "schema"), TABLES)
def test_the_configuration_table_names_every_choice(document: str, schema: type[BaseModel]) -> None:
    table = rows(document, ("key", "default", "meaning"))
    meanings = {key: meaning for keys, _, meaning in table for key in in_code(keys)}
    for key, info in schema_keys(schema):
        missing = set(choices_in(info.annotation)) - set(in_code(meanings[key]))
        assert not missing, f"{key}: {missing} are not named"


def test_the_table_of_predict_has_every_option_with_its_default() -> None:
    table = rows("docs/runs.md", ("option", "default", "meaning"))
    written = {in_code(option)[0]: written_default(default) for option, default, _ in table}
    true = {f"--{name.replace('_', '-')}": true_default(info) for name, info in GenerationConfig.model_fields.items()}
    assert written == true


def test_the_table_of_exit_codes_has_those_of_the_errors() -> None:
    def codes(error: type[DrumlineError]) -> Iterator[int]:
        yield error.exit_code
        for inner in error.__subclasses__():
            if inner.__module__ == DrumlineError.__module__:
                yield from codes(inner)

    written = [int(code) for code, _ in rows("docs/runs.md", ("exit code", "meaning"))]
    assert written == sorted({0, *codes(DrumlineError)})


@pytest.mark.parametrize("document", [each for each in DOCUMENTS if blocks(each, "yaml")])
def test_yaml_in_documents_is_a_valid_part_of_a_configuration(document: str, tmp_path: Path) -> None:
    for number, block in enumerate(blocks(document, "yaml")):
        part = yaml.safe_load(block)
        if "parameters" in part:
            (tmp_path / f"{number}.yaml").write_text(block)
            load_search(tmp_path / f"{number}.yaml")
            continue
        recipe = RECIPES.get(part.pop("task", None), "demo")
        whole = yaml.safe_load((ROOT / f"configs/{recipe}.yaml").read_text())
        for section, values in part.items():
            whole[section] = whole.get(section, {}) | values
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.safe_dump(whole))
        load_config(path)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_between_documents_lead_somewhere(document: str) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", (ROOT / document).read_text())
    paths = [target.partition("#")[0] for target in targets if "://" not in target]
    missing = [path for path in paths if path and not ((ROOT / document).parent / path).exists()]
    assert not missing


def test_every_page_of_the_guide_is_reached_from_the_readme() -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", (ROOT / "README.md").read_text())
    assert set(DOCUMENTS) - {"README.md"} <= set(targets)


def test_the_files_that_contributing_names_exist() -> None:
    table = rows("CONTRIBUTING.md", ("to find", "look in"))
    assert table
    for _, places in table:
        first, *others = (Path(name) for name in in_code(places) if re.search(r"/$|\.py$", name))
        folder = first if (ROOT / first).is_dir() else first.parent
        # After the first, names stand alone where they are beside it.
        for path in [first, *(other if len(other.parts) > 1 else folder / other for other in others)]:
            assert (ROOT / path).exists(), f"{path} does not exist"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_stand_in_blocks_that_are_run(document: str) -> None:
    text = (ROOT / document).read_text()
    for language in set(re.findall(r"^```(\w*)\n.+?^```$", text, re.MULTILINE | re.DOTALL)) - {"sh"}:
        for line in "".join(blocks(document, language)).splitlines():
            first = re.sub(r"^\s*(\$ |[A-Z_]+=\S+ )*", "", line).split(" ")[0]
            first = first.removeprefix(".venv/bin/")
            assert first not in ("drumline", "horovodrun", "make", "python", "pip", "tensorboard"), line


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_in_documents_exist_and_are_run_by_ci_or_the_set_up(document: str) -> None:
    makefile, ci = (ROOT / "Makefile").read_text(), (ROOT / ".ci/run").read_text()
    run_by_ci = re.findall(r"^timed make ([a-z-]+)", ci, re.MULTILINE)
    needed = " ".join(re.findall(rf"^(?:{'|'.join(run_by_ci)}): (.*?)(?:##|$)", makefile, re.MULTILINE))
    spoken_of = [code for code in in_code(prose(document)) if re.fullmatch(r"make [a-z-]+", code)]
    for command in [*filter(is_for_make, commands(document)), *spoken_of]:
        for target in re.findall(r"[a-z-]+", command.partition("#")[0])[1:]:
            assert re.search(rf"^{target}:.* ## ", makefile, re.MULTILINE), f"the Makefile has no target {target}"
            is_needed = target in SET_UP_TARGETS and SET_UP_TARGETS[target] in needed
            assert target in run_by_ci or is_needed or target in TARGETS_FOR_PEOPLE, f"nothing runs make {target}"


# What has to be run.


def make_clone(path: Path) -> None:
    """A folder with what a clone has after the set-up, a little of the demo's text, and a smaller demo."""
    for name in LINKED:
        (path / name).symlink_to(ROOT / name)
    (path / ".venv").symlink_to(Path(sys.executable).parents[1])
    shutil.copytree(ROOT / "configs", path / "configs")
    demo = path / "configs/demo.yaml"
    text = demo.read_text()
    for usual, smaller in SMALLER.items():
        text, count = re.subn(rf"\b{re.escape(usual)}\b", smaller, text)
        assert count == 1, f"configs/demo.yaml has {usual!r} {count} times: mend SMALLER"
    demo.write_text(text)
    topics = path / "data/demo/topics.txt"
    topics.parent.mkdir(parents=True)
    topics.write_text(TEXT[:NUM_CHARACTERS])


def run_in_shell(command: str, folder: Path, variables: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Runs one command to its good end: what it printed, and the variables as it leaves them."""
    after = folder / ".variables"
    process = subprocess.Popen(
        ["bash", "-c", f"set -euo pipefail\n{command}\nenv -0 >{shlex.quote(str(after))}"],
        cwd=folder,
        env=dict(variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, complaints = process.communicate(timeout=COMMAND_SECONDS)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    assert process.returncode == 0, f"{command}\nexit code {process.returncode}\n{printed}\n{complaints}"
    pairs = (pair.split("=", 1) for pair in after.read_text().split("\0") if "=" in pair)
    return printed, {name: value for name, value in pairs}


@pytest.fixture(scope="module")
def work_through(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Clone]:
    """Runs a document's commands, once: those for make are CI's, and TensorBoard has a test of its own."""
    done: dict[str, Clone] = {}

    def run(document: str) -> Clone:
        if document not in done:
            path = tmp_path_factory.mktemp(Path(document).stem)
            make_clone(path)
            variables, printed = environment(), {}
            for command in commands(document):
                if not is_for_make(command) and not is_for_tensorboard(command):
                    printed[command], variables = run_in_shell(command, path, variables)
            done[document] = Clone(path, variables, printed)
        return done[document]

    return run


@pytest.mark.processes
@pytest.mark.parametrize("document", [each for each in DOCUMENTS if not all(map(is_for_make, commands(each)))])
def test_every_command_of_a_document_works(document: str, work_through: Callable[[str], Clone]) -> None:
    assert work_through(document).printed


@pytest.mark.processes
def test_tensorboard_shows_training_and_validation_of_the_demo(work_through: Callable[[str], Clone]) -> None:
    clone = work_through("README.md")
    (command,) = filter(is_for_tensorboard, commands("README.md"))
    port = free_ports(1)[0]
    server = subprocess.Popen(
        [*shlex.split(command, comments=True), "--port", str(port)],
        cwd=clone.path,
        env=dict(clone.environment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        tags = wait_for_tags(server, f"http://127.0.0.1:{port}/data/plugin/scalars/tags", ("train", "validation"))
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    assert "loss" in tags["train"]
    assert "loss" in tags["validation"]


def wait_for_tags(server: subprocess.Popen[bytes], address: str, splits: Sequence[str]) -> dict[str, Any]:
    """What TensorBoard has read, as soon as it has all of the splits."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + TENSORBOARD_SECONDS
    tags: dict[str, Any] = {}
    while not all(tags.get(split) for split in splits):
        assert server.poll() is None, "TensorBoard has ended"
        assert time.monotonic() < deadline, f"TensorBoard has only {tags}"
        try:
            with opener.open(address, timeout=5) as answer:
                tags = json.load(answer)
        except (urllib.error.URLError, TimeoutError):
            pass
        time.sleep(0.5)
    return tags


@pytest.mark.processes
def test_a_run_has_the_files_that_the_guide_names_and_no_others(work_through: Callable[[str], Clone]) -> None:
    run = work_through("docs/runs.md").path / "runs/demo"
    tree = next(block for block in blocks("docs/runs.md", "text") if block.startswith("runs/demo/"))
    assert {path.name for path in run.iterdir()} == set(re.findall(r"^  ([\w.]+)/?  ", tree, re.MULTILINE))
    tree = next(block for block in blocks("docs/runs.md", "text") if block.startswith("checkpoints/"))
    for checkpoint in (run / "checkpoints").glob("step-*"):
        assert {path.name for path in checkpoint.iterdir()} == set(re.findall(r"^  ([\w.-]+)  ", tree, re.MULTILINE))


@pytest.mark.processes
def test_metrics_have_the_fields_that_the_guide_names_and_no_others(work_through: Callable[[str], Clone]) -> None:
    lines = json_lines(work_through("docs/runs.md").path / "runs/demo/metrics.jsonl")
    for split in ("train", "validation"):
        written = {
            in_code(field)[0]
            for field, splits, _ in rows("docs/runs.md", ("field", "split", "unit and meaning"))
            if splits in (split, "both")
        }
        fields = {field for line in lines if line["split"] == split for field in line}
        assert fields == written - {"loss_scale", "epsilon"}  # of float16 alone, and of private training


@pytest.mark.processes
@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_what_is_printed_has_the_fields_that_the_guide_names(verb: str, work_through: Callable[[str], Clone]) -> None:
    printed = [output for command, output in work_through("docs/runs.md").printed.items() if f"drumline {verb}" in command]
    sections = re.split(r"^## ", prose("docs/runs.md"), flags=re.MULTILINE)
    named = in_code(next(each for each in sections if each.lower().startswith(verb)))
    assert printed
    for line in "".join(printed).splitlines():
        assert json.loads(line).keys() <= set(named)
