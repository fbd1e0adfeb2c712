"""The house's own rules: layers, signatures, docstrings, doctests, configs."""

import ast
import dataclasses
import doctest
import importlib
import inspect
import json
import pkgutil
import re

import pytest
import tyro
from conftest import ROOT

import r2n2_jax
from r2n2_jax.config import (
    PRESETS,
    Config,
    ModelConfig,
    OptimiserConfig,
    TrainingConfig,
    differences,
    from_dict,
    to_dict,
    with_shorter_warmup,
)

# Lower layers first; a module may import from its own layer and those before it.
LAYERS = [
    ("errors", "config", "version"),
    ("runtime",),
    ("ops",),
    ("models", "baseline", "io"),
    ("pretrained", "data"),
    ("training", "registration"),
    ("evaluation",),
    ("commands",),
]
MODULES = [module.name for module in pkgutil.walk_packages(r2n2_jax.__path__, "r2n2_jax.")]


def layer(module):
    """What is no module of a layer, a name of the package's own ``__init__`` say, lies above them all."""
    part = module.split(".")[1]
    return next((i for i, names in enumerate(LAYERS) if part in names), len(LAYERS))


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    path = ROOT.joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.walk(ast.parse(source.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith("r2n2_jax."):
                assert layer(name) <= layer(module), f"{module} imports {name}, a layer above it"


def test_only_io_knows_simpleitk():
    users = [path for path in (ROOT / "r2n2_jax").rglob("*.py") if "import SimpleITK" in path.read_text()]
    assert [path.relative_to(ROOT / "r2n2_jax").as_posix() for path in users] == ["io/images.py"]


def public_functions():
    for module in MODULES:
        imported = importlib.import_module(module)
        for name, value in vars(imported).items():
            if not name.startswith("_") and callable(value) and getattr(value, "__module__", None) == module:
                yield pytest.param(value, id=f"{module}.{name}")


@pytest.mark.parametrize("function", list(public_functions()))
def test_public_names_are_documented_and_ordered(function):
    assert inspect.getdoc(function), "no docstring"
    if inspect.isclass(function):
        return
    parameters = list(inspect.signature(function).parameters.values())
    names = [p.name for p in parameters]
    if "key" in names:
        assert names[0] == "key", "the key comes first"
    if "fixed" in names and "moving" in names:
        assert names.index("fixed") < names.index("moving")
    for p in parameters:
        if isinstance(p.default, (bool, int, float)):
            assert p.kind is p.KEYWORD_ONLY, f"the option {p.name} must be keyword-only"


@pytest.mark.parametrize("module", MODULES)
def test_modules_open_with_one_sentence(module):
    doc = importlib.import_module(module).__doc__
    assert doc, "no module docstring"
    assert doc.splitlines()[0].rstrip().endswith((".", ";", ",", ":")) or "\n\n" not in doc


@pytest.mark.parametrize("module", ["r2n2_jax.models.conv_gru", "r2n2_jax.models.r2n2"])
def test_doctests(module):
    results = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.attempted > 0
    assert results.failed == 0


def test_the_documented_library_does_as_it_says():
    results = doctest.testfile(str(ROOT / "docs" / "api.md"), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.attempted > 15
    assert results.failed == 0


@pytest.mark.parametrize("page", ["README.md", "docs/performance.md", "r2n2_jax/pretrained/README.md"])
def test_options_in_the_text_are_taken_as_they_stand(page):
    settings = r"--(?:model|phantom|optimiser|training)\.[\w-]+(?:\s+[^-`|]\S*?(?=[`\s]))?"
    found = re.findall(settings, (ROOT / page).read_text())
    assert found
    for words in found:
        tyro.cli(Config, args=words.split(), default=PRESETS["small"])


@pytest.mark.parametrize("preset", PRESETS)
def test_configs_survive_json(preset):
    assert from_dict(json.loads(json.dumps(to_dict(PRESETS[preset])))) == PRESETS[preset]


def test_configs_are_checked_and_compared():
    with pytest.raises(ValueError, match=r"model\.steps"):
        ModelConfig(steps=0)
    with pytest.raises(ValueError, match=r"training\.batch"):
        TrainingConfig(batch=0)
    with pytest.raises(ValueError, match="unknown config sections: nonsense"):
        from_dict({"nonsense": {}})
    with pytest.raises(ValueError, match="config section model"):
        from_dict({"model": {"nonsense": 1}})
    changed = dataclasses.replace(Config(), model=ModelConfig(steps=3))
    assert differences(to_dict(Config()), to_dict(changed)) == ["model.steps: 25 -> 3"]
    assert differences(to_dict(Config()), to_dict(Config())) == []


def test_a_run_of_an_older_version_goes_on_where_its_config_means_the_same():
    older = to_dict(Config())
    del older["optimiser"]["brightness"]
    assert differences(older, to_dict(Config())) == []
    newer = dataclasses.replace(Config(), optimiser=OptimiserConfig(brightness=True))
    assert differences(older, to_dict(newer)) == ["optimiser.brightness: False -> True"]


@pytest.mark.parametrize(("steps", "warmup"), [(560, 50), (500, 50), (499, 49), (20, 2), (4, 0)])
def test_the_warm_up_is_at_most_a_tenth_of_a_short_run(steps, warmup):
    shorter = with_shorter_warmup(PRESETS["small"], steps)
    assert shorter.optimiser.warmup == warmup
    assert shorter == dataclasses.replace(PRESETS["small"], optimiser=shorter.optimiser)
    assert with_shorter_warmup(Config(), steps) == Config()
