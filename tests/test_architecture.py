"""The rules of docs/design.md that a program can hold: who imports whom, who knows torch, and the size of files."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "griffinlm"

NEIGHBOURS = {("presets", "config"), ("config", "presets")}
"""Rooms of one row that may import each other: presets are configurations, and ModelConfig.preset looks them up."""
TORCH_ROOMS = {"kernels", "model", "hf", "train"}
LAZY_TORCH = {"griffinlm.checkpoint.deepmind", "griffinlm.loading"}
"""Modules that may import torch where a function runs: a .pt file is torch's own; load() says when torch is missing."""
PLAIN_MODULES = {
    f"griffinlm.generation.{name}" for name in ("scheduler", "request", "queue", "pace", "budget", "depth")
}
MOST_LINES = 450
DRAWERS = {"utils", "util", "helpers", "helper", "common", "misc"}
CONFIG_CLASSES = ("ModelConfig", "RecurrentConfig", "AttentionConfig", "RecursionConfig")

Sources = Mapping[str, str]
"""Source text by module name."""


@dataclass(frozen=True)
class Import:
    """One imported module or name, dotted in full."""

    target: str
    line: int
    is_lazy: bool
    """Inside a function or under TYPE_CHECKING: not run when the module is imported."""

    @property
    def top(self) -> str:
        return self.target.split(".")[0]


def package_sources() -> dict[str, str]:
    folder = ROOT / "src" / PACKAGE
    modules = {}
    for path in sorted(folder.rglob("*.py")):
        parts = (PACKAGE, *path.relative_to(folder).with_suffix("").parts)
        modules[".".join(parts).removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return modules


def drawn_rows(design: str) -> list[list[str]]:
    """The rooms of the diagram under "Imports go down only:", the lowest row first."""
    diagram = design.split("Imports go down only:")[1].split("```")[1]
    return [line.replace(",", " ").split() for line in reversed(diagram.splitlines()) if line.strip()]


def room_of(module: str) -> str:
    """`kernels` for griffinlm.kernels.linear_scan; the package itself, its face, is called by its own name."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else PACKAGE


def imports_of(source: str) -> Iterator[Import]:
    """Every import of a source, those in functions and under TYPE_CHECKING and by import_module("...") too."""

    def walk(node: ast.AST, is_lazy: bool) -> Iterator[Import]:
        match node:
            case ast.Import(names=names):
                yield from (Import(alias.name, node.lineno, is_lazy) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                prefix = "." * level + (module or "")
                yield from (Import(f"{prefix}.{alias.name}", node.lineno, is_lazy) for alias in names)
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[argument, *_]):
                if name in ("import_module", "__import__"):
                    text = argument.values[0] if isinstance(argument, ast.JoinedStr) else argument
                    if isinstance(text, ast.Constant) and isinstance(text.value, str):
                        yield Import(text.value, node.lineno, is_lazy)
        is_checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        is_lazy = is_lazy or is_checking or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, is_lazy)

    yield from walk(ast.parse(source), is_lazy=False)


def imported_room(target: str, rooms: Set[str]) -> str:
    """The room that a dotted name inside the package comes from; `from griffinlm import load` comes from the face."""
    parts = target.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in rooms else PACKAGE


def upward_imports(sources: Sources, rows: list[list[str]]) -> list[str]:
    """Imports that do not go down, rooms without a place in the diagram, and relative imports, which hide the room."""
    rank: dict[str, float] = {room: index for index, row in enumerate(rows) for room in row}
    # The face re-exports what stands up to loading; only what is above that may import from it.
    rank[PACKAGE] = rank["loading"] + 0.5
    rooms = rank.keys() | {room_of(module) for module in sources}
    faults = []
    for module, source in sources.items():
        room = room_of(module)
        if room not in rank:
            if source.strip():
                faults.append(f"{module}: room {room} has no place in the diagram")
            continue
        for found in imports_of(source):
            if found.target.startswith("."):
                faults.append(f"{module}:{found.line}: relative import")
            elif found.top == PACKAGE:
                below = imported_room(found.target, rooms)
                if below != room and (room, below) not in NEIGHBOURS and rank.get(below, len(rows)) >= rank[room]:
                    faults.append(f"{module}:{found.line}: {room} may not import {below}")
    return faults


def torch_imports(sources: Sources) -> list[str]:
    """Imports of torch outside its rooms; in `LAZY_TORCH` those that run with the module."""
    return [
        f"{module}:{found.line}: imports torch"
        for module, source in sources.items()
        if room_of(module) not in TORCH_ROOMS
        for found in imports_of(source)
        if found.top == "torch" and not (found.is_lazy and module in LAZY_TORCH)
    ]


def array_imports_of_plain_modules(sources: Sources) -> list[str]:
    """Imports of numpy or torch, and modules that are missing, among those that must decide without arrays."""
    faults = [f"{module} is missing" for module in PLAIN_MODULES - sources.keys()]
    for module in PLAIN_MODULES & sources.keys():
        faults += [
            f"{module}:{found.line}: imports {found.top}"
            for found in imports_of(sources[module])
            if found.top in ("numpy", "torch")
        ]
    return faults


def attributes_read(tree: ast.AST) -> set[str]:
    return {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)}


def unread_fields(sources: Sources) -> list[str]:
    """Configuration fields that nothing outside config.py reads, neither directly nor by a property made of them."""
    config = f"{PACKAGE}.config"
    outside = set().union(*(attributes_read(ast.parse(s)) for m, s in sources.items() if m != config))
    unread = []
    for node in ast.parse(sources[config]).body:
        if isinstance(node, ast.ClassDef) and node.name in CONFIG_CLASSES:
            properties = [
                n
                for n in node.body
                if isinstance(n, ast.FunctionDef) and any(ast.unparse(d) == "property" for d in n.decorator_list)
            ]
            through = set().union(*(attributes_read(p) for p in properties if p.name in outside))
            fields = [n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
            unread += [f"{node.name}.{field}" for field in fields if field not in outside | through]
    return unread


def long_files(sources: Sources) -> list[str]:
    return [f"{module}: {n} lines" for module, s in sources.items() if (n := len(s.splitlines())) >= MOST_LINES]


def drawers(sources: Sources) -> list[str]:
    """Modules and rooms named after nothing in particular."""
    return [module for module in sources if DRAWERS & set(module.split("."))]


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    return package_sources()


@pytest.fixture(scope="module")
def rows() -> list[list[str]]:
    return drawn_rows((ROOT / "docs" / "design.md").read_text(encoding="utf-8"))


def assert_none(faults: list[str]) -> None:
    assert not faults, "\n".join(["", *faults])


def test_imports_go_down_only_as_the_design_draws_them(sources, rows):
    assert_none(upward_imports(sources, rows))


def test_every_room_of_the_design_exists(sources, rows):
    assert {room for row in rows for room in row} <= {room_of(module) for module in sources}


def test_only_kernels_and_model_import_torch(sources):
    assert_none(torch_imports(sources))


def test_scheduler_and_request_import_neither_numpy_nor_torch(sources):
    assert_none(array_imports_of_plain_modules(sources))


def test_every_config_field_is_read(sources):
    assert_none(unread_fields(sources))


def test_files_are_short_and_no_room_is_a_drawer(sources):
    assert_none(long_files(sources))
    assert_none(drawers(sources))


def test_everything_but_kernels_and_model_imports_without_torch(sources, tmp_path):
    modules = [module for module in sources if room_of(module) not in TORCH_ROOMS and not module.endswith("__main__")]
    assert len(modules) > 10
    program = "import sys, importlib; sys.modules['torch'] = None; [importlib.import_module(m) for m in sys.argv[1:]]"
    run = subprocess.run([sys.executable, "-c", program, *modules], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr


PLANTED_ROWS = [
    ["errors"],
    ["config", "presets"],
    ["state", "executor"],
    ["text", "kernels"],
    ["loading"],
    ["cli"],
]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("griffinlm.config", "from griffinlm.state import State"),
        ("griffinlm.config", "import griffinlm.state"),
        ("griffinlm.state", "from griffinlm.executor import Engine"),
        ("griffinlm.text.stop", "from griffinlm import kernels"),
        ("griffinlm.errors", "def f():\n    from griffinlm.config import ModelConfig"),
        ("griffinlm.errors", "if TYPE_CHECKING:\n    from griffinlm.config import ModelConfig"),
        ("griffinlm.errors", "importlib.import_module('griffinlm.config')"),
        ("griffinlm.errors", "import_module(f'griffinlm.config.{name}')"),
        (
            "griffinlm.errors",
            "class A:\n    try:\n        import griffinlm.cli.main\n    except ImportError:\n        pass",
        ),
        ("griffinlm.loading", "from griffinlm import __version__"),
        ("griffinlm.text.stop", "from .tokenizer import Tokenizer"),
        ("griffinlm.cellar.wine", "x = 1"),
    ],
)
def test_planted_upward_import_is_found(module, source):
    assert len(upward_imports({module: source}, PLANTED_ROWS)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("griffinlm.config", "from griffinlm.errors import GriffinError"),
        ("griffinlm.config", "def f():\n    from griffinlm.presets import PRESETS"),
        ("griffinlm.text.stop", "from griffinlm.text.tokenizer import Tokenizer"),
        ("griffinlm.cli.main", "from griffinlm import __version__\nimport griffinlm.text"),
        ("griffinlm", "from griffinlm.loading import load"),
        ("griffinlm.cellar", ""),
    ],
)
def test_downward_import_is_no_fault(module, source):
    assert upward_imports({module: source}, PLANTED_ROWS) == []


def test_rows_are_read_from_the_drawing():
    design = "x\nImports go down only:\n\n```\n      cli\n  a   b\n  config, presets\n```\nmore ``` text"
    assert drawn_rows(design) == [["config", "presets"], ["a", "b"], ["cli"]]


@pytest.mark.parametrize(
    "source", ["import torch", "from torch import nn", "import torch.nn as nn", "def f():\n    import torch"]
)
def test_planted_torch_is_found_outside_its_rooms(source):
    assert len(torch_imports({"griffinlm.text.stop": source})) == 1
    assert torch_imports({"griffinlm.kernels.scan": source}) == []
    is_lazy = source.startswith("def")
    assert bool(torch_imports({"griffinlm.checkpoint.deepmind": source})) == (not is_lazy)


def test_planted_numpy_is_found_in_the_scheduler():
    plain = dict.fromkeys(PLAIN_MODULES, "import math")
    assert array_imports_of_plain_modules(plain) == []
    for source in ("import numpy as np", "def f():\n    from numpy import array", "import torch"):
        assert len(array_imports_of_plain_modules({**plain, "griffinlm.generation.scheduler": source})) == 1
    assert len(array_imports_of_plain_modules({"griffinlm.generation.request": ""})) == len(PLAIN_MODULES) - 1


def test_planted_unread_field_is_found():
    config = (
        "class ModelConfig:\n    width: int\n    depth: int\n    dust: int\n    rust: int\n"
        "    @property\n    def size(self):\n        return self.depth\n"
        "    @property\n    def unused(self):\n        return self.rust\n"
        "    def method(self):\n        return self.dust\n"
    )
    model = "def f(config):\n    config.dust = 1\n    return config.width + config.size + config.method()"
    found = unread_fields({"griffinlm.config": config, "griffinlm.model": model})
    assert found == ["ModelConfig.dust", "ModelConfig.rust"]


def test_planted_long_file_and_drawer_are_found():
    sources = {"griffinlm.a": "x\n" * MOST_LINES, "griffinlm.b": "x\n" * (MOST_LINES - 1), "griffinlm.text.utils": ""}
    assert long_files(sources) == [f"griffinlm.a: {MOST_LINES} lines"]
    assert drawers(sources) == ["griffinlm.text.utils"]
