"""The house's own rules: layers, signatures, docstrings, doctests, configs."""

import ast
import dataclasses
import doctest
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys

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


_MOST_LINES = 350


def sources(*folders):
    return {path.relative_to(ROOT).as_posix(): path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py")}


def opens_with_one_sentence(doc):
    """Whether the first paragraph begins as a sentence, with a capital or a quoted name, and ends at its only full stop."""
    first = re.sub(r"\b(et al|e\.g|i\.e|cf|vs)\.", "", " ".join(doc.split("\n\n")[0].split()))
    ends = re.findall(r"""[.!?][)\]"'`]*(?=\s|$)""", first)
    return bool(re.match(r"[A-Z]|``", first)) and len(ends) == 1 and first.endswith(".")


@pytest.mark.parametrize("path", sources("r2n2_jax", "benchmarks"))
def test_modules_open_with_one_sentence(path):
    doc = ast.get_docstring(ast.parse((ROOT / path).read_text()))
    assert doc, "no module docstring"
    assert opens_with_one_sentence(doc)


@pytest.mark.parametrize(
    "doc",
    [
        "Reads a file.",
        "``python -m benchmarks``: every part; then results.json, a page.",
        "One idea, which goes on\nto the next line: as in Lujan et al. (eq 4, e.g. 2.5 of it).\n\nMore of it. And more.",
    ],
)
def test_one_sentence_is_taken_for_one(doc):
    assert opens_with_one_sentence(doc)


@pytest.mark.parametrize(
    "doc",
    [
        "",
        "reads a file.",
        "Reads a file",
        "Reads a file, and:\n\nmore.",
        "Reads a file. Writes it.",
        "Reads a file.\nWrites it.",
        "Reads a file (of NumPy's.) Writes it.",
        "Reads a file! Writes it.",
        "Which file does it read?",
        "Reads a file;\n\nwrites it.",
    ],
)
def test_anything_else_is_not_taken_for_one_sentence(doc):
    assert not opens_with_one_sentence(doc)


def test_the_root_holds_the_face_alone():
    root = {path for path in sources("r2n2_jax") if path.count("/") == 1}
    assert root == {f"r2n2_jax/{name}.py" for name in ("__init__", "config", "errors", "version")}


def test_no_file_is_too_long():
    lines = {path: text.count("\n") for path, text in sources("r2n2_jax").items()}
    assert not {path for path, count in lines.items() if count > _MOST_LINES}


def test_what_pure_functions_need_is_all_that_they_load():
    """In a fresh process; the control, the name that reads checkpoints, loads what does so."""
    code = (
        "import sys, r2n2_jax, r2n2_jax.ops.warp\n"
        "heavy = {'SimpleITK', 'pydicom', 'orbax', 'optax', 'grain', 'matplotlib', 'tyro'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "r2n2_jax.load\n"
        "print('orbax' in sys.modules)"
    )
    words = [sys.executable, "-c", code]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout.splitlines() == ["[]", "True"]


@pytest.mark.parametrize("module", ["r2n2_jax.models.conv_gru", "r2n2_jax.models.r2n2"])
def test_doctests(module):
    results = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.attempted > 0
    assert results.failed == 0


def test_the_documented_library_does_as_it_says():
    results = doctest.testfile(str(ROOT / "docs" / "api.md"), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.attempted > 15
    assert results.failed == 0


@pytest.mark.parametrize("page", ["docs/training.md", "docs/performance.md", "r2n2_jax/pretrained/README.md"])
def test_options_in_the_text_are_taken_as_they_stand(page):
    """Those of one command together, as one may need another; any other by itself."""
    settings = r"--(?:model|phantom|optimiser|training)\.[\w-]+(?:\s+[^-`|]\S*?(?=[`\s]))?"
    command, text = r"python train\.py [^`\n]*[`\n]", (ROOT / page).read_text()
    together = [" ".join(re.findall(settings, words)) for words in re.findall(command, text)]
    found = together + re.findall(settings, re.sub(command, "", text))
    assert any(found)
    for words in found:
        tyro.cli(Config, args=words.split(), default=PRESETS["volume" if "--model.depth" in words else "small"])


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
