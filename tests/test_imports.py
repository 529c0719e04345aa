"""What an import costs, and which way imports point."""

import ast
from pathlib import Path

import pytest

from tests.helpers.speed import python, times_as_long

ROOT = Path(__file__).parent.parent

# Each room of `textsafe_gym` and what it may import of the others; `algos` stands between `rollouts` and `experiments`.
GROUND = {
    "types", "registry", "errors", "files", "config", "presets", "installation", "protocols", "extras", "limits",
}  # fmt: skip
ALLOWED = {
    "textsafe_gym.errors": set(),
    "textsafe_gym.extras": {"errors"},
    "textsafe_gym.console": set(),
    "textsafe_gym.limits": set(),
    "textsafe_gym.files": {"errors"},
    "textsafe_gym.registry": {"errors"},
    "textsafe_gym.types": {"errors", "protocols"},
    "textsafe_gym.protocols": {"errors", "types"},
    "textsafe_gym.config": GROUND,
    "textsafe_gym.presets": GROUND,
    "textsafe_gym.installation": {"errors"},
    "textsafe_gym": {"envs"},
    "textsafe_gym.parallel": GROUND,
    "textsafe_gym.offline": GROUND | {"data"},
    "textsafe_gym.data": GROUND,
    "textsafe_gym.models": GROUND | {"data"},
    "textsafe_gym.planning": GROUND | {"models"},
    "textsafe_gym.fitting": GROUND | {"data", "models"},
    "textsafe_gym.embedded_world": GROUND | {"data", "models", "fitting"},
    "textsafe_gym.envs": GROUND | {"data", "models", "embedded_world"},
    "textsafe_gym.tracking": {"errors", "extras", "files"},
    "textsafe_gym.rollouts": GROUND | {"data", "models", "envs"},
    "textsafe_gym.adapters": GROUND | {"data", "models", "envs", "parallel", "rollouts"},
    "textsafe_gym.evaluation": GROUND | {"envs"},  # whose exact optimum a study is held to
}
SEES_ALL = {"textsafe_gym.experiments", "textsafe_gym.cli", "textsafe_gym.__main__", "textsafe_gym.docs"}
ALGOS_MAY = {f"textsafe_gym.{room}" for room in (*GROUND, "models", "offline", "parallel", "rollouts")}
MORE = {
    "algos/omnisafe.py": {"textsafe_gym.adapters"},  # algorithms of another library, through its adapter
    "algos/__init__.py": {"textsafe_gym.envs"},  # of which it takes the helpers for any Gymnasium environment
}
NOT_IN_ALGOS = {"transformers", "tokenizers"}


BY_NAME = {"import_module", "__import__", "Lazy", "load_object"}  # functions that take a module's name


def imported(path: Path) -> set[str]:
    """Full names of all modules that a file imports, at its top or inside functions, by a statement or by a literal."""
    return names_in(path.read_text(), path)


def names_in(source: str, path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and called(node) in BY_NAME and (node.args or node.keywords):
            names |= {given for given in [literal(node.args[0] if node.args else node.keywords[0].value)] if given}
    return names


def called(node: ast.Call) -> str:
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def literal(node: ast.expr) -> str:
    """The module in a string, or in the constant beginning of an f-string; empty for what is known only at run time."""
    if isinstance(node, ast.JoinedStr):
        node = node.values[0]
    text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
    return text.replace(":", ".").rstrip(".")


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import algos", {"algos"}),
        ("def f():\n    from algos.core import loop", {"algos.core.loop"}),
        ("import importlib\nimportlib.import_module('algos.ppo')", {"importlib", "algos.ppo"}),
        ("from importlib import import_module\nimport_module(name='algos')", {"importlib.import_module", "algos"}),
        ("__import__(f'algos.{name}')", {"algos"}),
        ("Lazy('algos.ppo:Algorithm')", {"algos.ppo.Algorithm"}),
        ("import_module(name)", set()),
    ],
)
def test_no_way_to_import_is_overlooked(source: str, names: set[str]) -> None:
    assert names_in(source, Path("x.py")) == names


def room(module: str) -> str:
    """The part that a module belongs to: "textsafe_gym.data.prompts.Prompt" is of "textsafe_gym.data"."""
    parts = module.split(".")
    if len(parts) == 1:
        return module
    known = (ROOT / parts[0] / parts[1]).exists() or (ROOT / parts[0] / f"{parts[1]}.py").exists()
    return ".".join(parts[:2]) if known else parts[0]


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def location(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts[:2])


@pytest.mark.parametrize("path", files("textsafe_gym"), ids=lambda path: str(path.relative_to(ROOT)))
def test_textsafe_gym_imports_point_one_way(path: Path) -> None:
    here = location(path)
    if here in SEES_ALL:
        if here == "textsafe_gym.experiments":
            assert not any(name.startswith("textsafe_gym.cli") for name in imported(path))
        return
    assert here in ALLOWED, f"{here} is new: say in ALLOWED what it may import"
    for name in imported(path):
        if name.split(".")[0] == "algos":
            pytest.fail(f"{path} imports {name}")
        if name.split(".")[0] == "textsafe_gym" and room(name) != here:
            assert room(name) in {f"textsafe_gym.{part}" for part in ALLOWED[here]}, f"{path} imports {name}"


@pytest.mark.parametrize("path", files("algos"), ids=lambda path: str(path.relative_to(ROOT)))
def test_algorithms_know_neither_environments_nor_tokens(path: Path) -> None:
    for name in imported(path):
        top = name.split(".")[0]
        assert top not in NOT_IN_ALGOS, f"{path} imports {name}"
        if top == "textsafe_gym":
            more = MORE.get(str(path.relative_to(ROOT)), set())
            assert room(name) in ALGOS_MAY | more, f"{path} imports {name}"
        if "core" in path.parts and top == "algos":
            assert name.startswith("algos.core"), f"{path} imports {name}"


@pytest.mark.timing
def test_import_is_light() -> None:
    program = "import textsafe_gym, sys; assert not {'torch', 'transformers'} & sys.modules.keys()"
    assert times_as_long(python(program), python("import gymnasium")) < 1.25
