"""The imports of the project run one way, as DESIGN.md has them, and TensorFlow stays where it belongs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = sorted(path for package in ("trainer", "launch") for path in (ROOT / package).rglob("*.py"))

# What stands at the bottom, and what each of these may import of the project.
FOUNDATIONS = {
    "trainer.errors": set(),
    "trainer.config": {"trainer.errors"},
    "trainer.config_complaints": {"trainer.config"},
    "trainer.pretrained.settings": {"trainer.config", "trainer.errors"},
    "trainer.config_io": {
        "trainer.config",
        "trainer.config_complaints",
        "trainer.errors",
        "trainer.pretrained",
        "trainer.pretrained.settings",
    },
}
OPEN_TO_LAUNCH = ("trainer.errors", "trainer.config", "trainer.config_io")
# `--help` and `check` import these; data and models have more such modules, which `check` needs.
WITHOUT_TENSORFLOW = (
    "trainer.arguments",
    "trainer.check",
    "trainer.cli",
    "trainer.config",
    "trainer.config_complaints",
    "trainer.config_io",
    "trainer.data.manifest",
    "trainer.errors",
    "trainer.models.instructions",
    "trainer.models.parameters",
    "trainer.optimizers.slots",
    # The watchdog must be there before TensorFlow, and start no runtime; checkpoints are listed without it.
    "trainer.checkpoint",
    "trainer.checkpoint_lock",
    "trainer.divergence",
    "trainer.monitor.departure",
    "trainer.monitor.heartbeats",
    "trainer.monitor.position",
    "trainer.monitor.roll_call",
    "trainer.monitor.watchdog",
    "trainer.pace",
    "trainer.planning",
    "trainer.planning.assumptions",
    "trainer.planning.cost",
    "trainer.planning.hardware",
    "trainer.planning.plan",
    "trainer.planning.report",
    "trainer.planning.request",
    # What it starts imports TensorFlow, in a process of its own.
    "trainer.preflight",
    # Weights are read and written in Hugging Face's format without it; only a SavedModel needs it.
    "trainer.pretrained",
    "trainer.pretrained.huggingface",
    "trainer.pretrained.names",
    "trainer.pretrained.new_folder",
    "trainer.pretrained.reading",
    "trainer.pretrained.settings",
    "trainer.pretrained.tensor_files",
    "trainer.pretrained.trained",
    "trainer.pretrained.written_settings",
    "trainer.progress",
    "trainer.saver",
    "trainer.stop",
)


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """All modules that a file imports, also within functions; of `from package import name` also `package.name`."""
    return {name for node in ast.walk(ast.parse(path.read_text())) for name in names(node)}


def names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        yield str(node.module)
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def importers(package: str) -> set[str]:
    return {name_of(path) for path in MODULES if any(within(name, package) for name in imports(path))}


def project_imports(path: Path) -> set[str]:
    """The project's modules that a file imports, without the names imported from them."""
    known = {name_of(each) for each in MODULES}
    return {name for name in imports(path) if name in known and name not in ("trainer", "launch")}


def test_the_foundations_import_only_each_other() -> None:
    for path in MODULES:
        if name_of(path) in FOUNDATIONS and name_of(path) != "trainer.config":
            assert project_imports(path) <= FOUNDATIONS[name_of(path)], path
        elif within(name_of(path), "trainer.config"):
            assert all(within(name, "trainer.config") or name == "trainer.errors" for name in project_imports(path)), path


def test_only_the_verb_train_imports_the_loop() -> None:
    assert importers("trainer.loop") == {"trainer.verbs.training"}


def test_only_the_entry_point_imports_the_command_line() -> None:
    assert importers("trainer.cli") == {"trainer.__main__"}


def test_only_the_command_line_imports_the_verbs() -> None:
    outside = {name for name in importers("trainer.verbs") if not within(name, "trainer.verbs")}
    assert outside == {"trainer.cli"}


def test_launch_imports_only_errors_and_config() -> None:
    for path in MODULES:
        if within(name_of(path), "launch"):
            foreign = {name for name in project_imports(path) if not within(name, "launch")}
            assert foreign <= set(OPEN_TO_LAUNCH), path


def test_only_the_command_line_and_the_search_import_launch() -> None:
    """What trains knows nothing of what starts it; a search starts trainings."""
    outside = {name for name in importers("launch") if not within(name, "launch")}
    assert all(name == "trainer.cli" or within(name, "trainer.verbs") or within(name, "trainer.search") for name in outside), (
        outside
    )


def test_only_the_command_line_imports_the_search() -> None:
    outside = {name for name in importers("trainer.search") if not within(name, "trainer.search")}
    assert outside == {"trainer.verbs.search"}


def test_launch_never_imports_tensorflow_nor_horovod_itself() -> None:
    for package in ("tensorflow", "horovod", "keras"):
        assert not {name for name in importers(package) if within(name, "launch")}


def test_only_distribution_imports_horovod() -> None:
    assert all(within(name, "trainer.distribution") for name in importers("horovod"))


def test_only_distribution_uses_tf_distribute() -> None:
    for path in MODULES:
        if within(name_of(path), "trainer.distribution"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            uses = isinstance(node, ast.Attribute) and node.attr == "distribute" and ast.unparse(node.value) == "tf"
            assert not uses, f"{path}:{node.lineno} uses tf.distribute"  # type: ignore[attr-defined]


def test_check_and_help_need_no_tensorflow() -> None:
    for path in MODULES:
        if name_of(path) in WITHOUT_TENSORFLOW or any(
            within(name_of(path), each) for each in ("trainer.config", "trainer.search", "trainer.verbs")
        ):
            found = {name for name in imports(path) if name.split(".")[0] in ("tensorflow", "keras")}
            assert not found, path


def test_the_environment_is_read_only_where_processes_are_started_and_joined() -> None:
    allowed = ("launch", "trainer.distribution", "trainer.encryption.keys")  # the last: the key, which is in no file
    for path in MODULES:
        if not any(within(name_of(path), package) for package in allowed):
            # The command line gives TF_CPP_MIN_LOG_LEVEL its default, and workers of `prepare` set what theirs is.
            reads = [read for read in environment_reads(path) if "setdefault" not in read]
            assert not reads, path


def environment_reads(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Attribute) and ast.unparse(child) in ("os.environ", "os.getenv"):
                written = isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)
                if not written:
                    yield ast.unparse(node)
