"""Who may import whom, read from the sources: the rules of CONTRIBUTING, Python and C++."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ddsm_ext"

# What a module of each area may import from inside ddsm_ext, as module prefixes. An area is the
# longest matching prefix; every area may import itself, `width` and the lazy-export helper.
ALLOWED: dict[str, tuple[str, ...]] = {
    "": ("models", "sampling", "ops"),  # ddsm_ext/__init__.py: lazy names only
    "_lazy": (),
    "settings": (),
    "width": (),
    "machine": (),
    "intervals": (),
    "_library": (),
    "_locks": (),
    "_fixed_weights": (),
    "_optional": (),
    "ops": ("_library", "_locks", "_fixed_weights"),
    "graph": (),
    "runtime": ("graph", "_library", "_locks", "_fixed_weights", "ops"),
    "models": ("graph", "ops", "runtime"),
    "models.unet": ("graph",),
    "models.transformer": ("graph",),
    "models.adm": ("graph", "models.transformer", "models.unet"),
    "io": (),
    "diffusion": (),
    "sampling": ("_fixed_weights", "diffusion", "io.document", "io.files"),
    "data": ("_optional", "io"),
    "eval": ("_optional", "data.pixels", "io.digest", "io.document", "io.files", "io.weights"),
    # sampling.strategy: which width a noise level has, in a run that is tuned for a strategy
    "training": ("data", "diffusion", "io", "sampling.strategy"),
    "search": ("io.digest", "io.document", "io.files", "io.lock", "io.typed", "sampling"),
    "report": ("io.digest", "io.document", "io.files", "io.typed", "search.cost", "search.front",
               "search.history", "search.sensitivity"),
    "compat": ("_optional", "diffusion", "graph", "io", "models", "ops", "sampling"),
    "bench": ("_library", "_fixed_weights", "graph", "models", "ops", "runtime"),
    "run": ("_fixed_weights", "_optional", "bench", "compat", "data", "diffusion", "eval", "graph",
            "io", "machine", "models", "report", "sampling", "search", "training"),
    "cli": ("",),
}  # fmt: skip
ALWAYS = ("_lazy", "settings", "width", "intervals")

# Areas that load no torch, directly or through what they import at module level.
TORCH_FREE = ("", "_lazy", "_locks", "_fixed_weights", "_optional", "settings", "width", "machine",
              "intervals", "graph", "graph.graph", "graph.config", "graph.slicing", "graph.count",
              "models.unet", "models.adm", "data.config", "data.latents", "training.loop_config",
              "training.config", "training.autoencoder_config", "diffusion.config",
              "sampling.config", "sampling.samplers", "search.config", "run.config", "run.folder",
              "run.latents", "cli.main")  # fmt: skip

# The exception's class may be named, to catch what torch.load raises; nothing may be unpickled.
PICKLERS = ("pickle", "cPickle", "dill", "joblib", "cloudpickle")
PICKLE_NAMES = ("pickle", "pickle.UnpicklingError")

NOT_FOR_THE_PACKAGE = ("benchmarks", "python_tests", "conftest")


def python_files() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    """`ddsm_ext/models/unet.py` -> "models.unet"; a package's `__init__` is the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(module: str, prefix: str) -> bool:
    return prefix == "" or module == prefix or module.startswith(prefix + ".")


def area(module: str) -> str:
    """The longest key of ALLOWED that holds `module`."""
    own = max((key for key in ALLOWED if key and within(module, key)), key=len, default="")
    assert own or not module, (
        f"ddsm_ext.{module} has no entry in ALLOWED: decide what it may import"
    )
    return own


def imports(path: Path, *, module_level_only: bool = False) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of each import; `from a import b` yields both a and a.b."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    for node in _nodes(tree, module_level_only):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; name the full path"
            assert node.module is not None
            yield node.lineno, node.module
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def _nodes(tree: ast.AST, module_level_only: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        if module_level_only and (function or _is_type_checking(node)):
            continue
        yield node
        yield from _nodes(node, module_level_only)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def resolve(dotted: str) -> str | None:
    """A ddsm_ext module as its name inside the package, or None for anything else.

    Of `from a import b` both a and a.b arrive here; names that are no module count as their module.
    """
    if not within(dotted, "ddsm_ext"):
        return None
    module = dotted.removeprefix("ddsm_ext").lstrip(".")
    path = PACKAGE.joinpath(*module.split(".")) if module else PACKAGE
    if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
        return module
    return None


def test_python_imports_follow_the_layers() -> None:
    wrong = []
    for path in python_files():
        module = module_name(path)
        own = area(module)
        for line, dotted in imports(path):
            target = resolve(dotted)
            if not target or (own and within(target, own)):
                continue
            # `from ddsm_ext.models import config` passes through the package's lazy __init__.
            if any(within(allowed, target) for allowed in ALLOWED[own] if allowed):
                continue
            if not any(within(target, allowed) for allowed in (*ALWAYS, *ALLOWED[own])):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {module} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_nobody_imports_the_command_line_benchmarks_or_tests() -> None:
    wrong = []
    for path in python_files():
        for line, dotted in imports(path):
            top = dotted.split(".")[0]
            if top in NOT_FOR_THE_PACKAGE:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: imports {dotted}")
            if within(dotted, "ddsm_ext.cli") and not within(module_name(path), "cli"):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: imports {dotted}")
    assert not wrong, "\n".join(wrong)


def test_torch_free_modules_import_no_torch_at_module_level() -> None:
    wrong = []
    for path in python_files():
        module = module_name(path)
        if module not in TORCH_FREE:
            continue
        for line, dotted in imports(path, module_level_only=True):
            if dotted.split(".")[0] == "torch":
                wrong.append(f"{path.relative_to(ROOT)}:{line}: imports {dotted}")
    assert not wrong, "\n".join(wrong)


Edges = dict[str, set[str]]


def import_graph() -> Edges:
    """Module -> the modules that it imports, also inside functions, which only hide a circle.

    Imports under TYPE_CHECKING never run and are left out. `from package import module` leads to
    the module alone: packages export by name and load nothing.
    """
    edges: Edges = {}
    for path in python_files():
        found = set()
        for node in _running(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {resolve(alias.name) for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.module is not None
                parts = {resolve(f"{node.module}.{alias.name}") for alias in node.names}
                found |= {resolve(node.module) if part is None else part for part in parts}
        edges[module_name(path)] = {target for target in found if target is not None}
    return edges


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING`, whose `else` runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and _is_type_checking(node):
            yield from (inner for other in node.orelse for inner in ast.walk(other))
            continue
        yield node
        yield from _running(node)


def circles(edges: Edges) -> list[tuple[str, ...]]:
    """Strongly connected components: sets of two or more that all lead to one another, sorted."""
    reached = {start: _reachable(start, edges) for start in edges}
    together = {
        tuple(sorted(other for other in reached[start] if start in reached.get(other, ())))
        for start in edges
        if start in reached[start]
    }
    return sorted(group for group in together if len(group) > 1)


def _reachable(start: str, edges: Edges) -> set[str]:
    """What a path of one or more imports leads to."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for target in edges.get(waiting.pop(), set()) - seen:
            seen.add(target)
            waiting.append(target)
    return seen


def test_circles_are_found() -> None:
    line: Edges = {"a": {"b"}, "b": {"c", "d"}, "c": {"d"}, "d": set()}
    assert circles(line) == []
    assert circles({**line, "d": {"b"}}) == [("b", "c", "d")]
    two: Edges = {"a": {"b", "c"}, "b": {"a"}, "c": {"d"}, "d": {"c"}}
    assert circles(two) == [("a", "b"), ("c", "d")]


def test_no_import_circle() -> None:
    edges = import_graph()
    lines = [
        f"{name} imports {target}"
        for group in circles(edges)
        for name in group
        for target in sorted(edges[name].intersection(group))
    ]
    assert not lines, "\n".join(lines)


def test_no_circle_among_the_rooms() -> None:
    """Two rooms that import each other are one, even where no module leads back to itself."""
    rooms: Edges = {}
    for module, targets in import_graph().items():
        own = module.split(".")[0]
        if own:
            rooms.setdefault(own, set()).update({t.split(".")[0] for t in targets} - {own, ""})
    assert not circles(rooms), circles(rooms)


@pytest.mark.parametrize(
    "module", ["ddsm_ext", *(f"ddsm_ext.{m}" for m in TORCH_FREE if m and m != "_lazy")]
)
def test_import_loads_no_torch(module: str) -> None:
    if resolve(module) is None:
        pytest.skip(f"{module} is not there")
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, f"import {module} loaded torch\n{result.stderr}"


def test_only_ops_call_the_registered_ops() -> None:
    """`torch.ops.ddsm_ext` belongs to ops; loading libraries belongs to _library."""
    wrong = []
    for path in python_files():
        module = module_name(path)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute):
                continue
            text = ast.unparse(node)
            in_ops = within(module, "ops") or within(module, "_library")
            if text.startswith("torch.ops.ddsm_ext") and not in_ops:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {text}")
            loads = node.attr in ("load_library", "CDLL", "dlopen")
            if loads and not within(module, "_library"):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {text}")
    assert not wrong, "\n".join(wrong)


def test_forbidden_calls() -> None:
    """No pickle, no eval or exec, no shell, no extraction, torch.load only with weights_only."""
    wrong = []
    for path in python_files():
        where = path.relative_to(ROOT)
        wrong += [
            f"{where}:{line}: imports {name}"
            for line, name in imports(path)
            if name.split(".")[0] in PICKLERS and name not in PICKLE_NAMES
        ]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                wrong += [f"{where}:{node.lineno}: {why}" for why in _faults(node)]
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("pickle."):
                wrong += [f"{where}:{node.lineno}: {ast.unparse(node)}"] * (
                    ast.unparse(node) not in PICKLE_NAMES
                )
    assert not wrong, "\n".join(wrong)


def _faults(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    keywords = {k.arg: ast.unparse(k.value) for k in call.keywords}
    if name in ("eval", "exec", "os.system", "os.popen") or name.endswith(".extractall"):
        yield f"calls {name}"
    if keywords.get("shell", "False") != "False":
        yield f"{name} with shell"
    if name == "torch.load" and keywords.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    if name in ("np.load", "numpy.load") and keywords.get("allow_pickle", "False") != "False":
        yield f"{name} with allow_pickle"


def test_no_module_is_called_utils() -> None:
    names = [p for p in PACKAGE.rglob("*") if p.stem in ("utils", "util", "helpers", "misc")]
    assert not names


# C++: include/ddsm <- cpu | cuda <- bindings; only bindings sees torch or pybind11.
INCLUDE = re.compile(r"^\s*#\s*include\s*[<\"]([^>\"]+)[>\"]", re.MULTILINE)
CPP_FORBIDDEN = {
    "include/ddsm": ("torch/", "ATen/", "c10/", "pybind11/", "Python.h", "cuda"),
    "cpu": ("torch/", "ATen/", "c10/", "pybind11/", "Python.h", "cuda"),
    "cuda": ("torch/", "ATen/", "c10/", "pybind11/", "Python.h", "cpu/", "../cpu"),
}


@pytest.mark.parametrize("folder", sorted(CPP_FORBIDDEN))
def test_cpp_includes(folder: str) -> None:
    base = ROOT / "csrc" / folder
    if not base.is_dir():
        pytest.skip(f"csrc/{folder} is not there")
    wrong = []
    for path in sorted(base.rglob("*")):
        if path.suffix not in (".h", ".hpp", ".cpp", ".cu", ".cuh"):
            continue
        for header in INCLUDE.findall(path.read_text(encoding="utf-8")):
            if header.startswith(CPP_FORBIDDEN[folder]):
                wrong.append(f"{path.relative_to(ROOT)}: includes {header}")
    assert not wrong, "\n".join(wrong)
