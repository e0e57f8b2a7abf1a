"""Imports go down the list of layers and never up."""

import ast
import pathlib

import grimp
import pytest

# From the bottom to the top; a name stands for all modules below it that have
# no line of their own.
LAYERS = (
    "errors",
    "backend declarative files formatting normalizations progress",
    "models.structure checkpoints schema",
    "options",
    # What data there are: names, classes, fingerprints; reads no image.
    "data.listing data.folders data.fashion_mnist "
    "data.registry data.fingerprint",
    "cli",
    "progressive",
    "config",
    # These two do not know each other.
    "data models",
    "zoo catalog",
    "engines",
    "runs",
    "evaluation recovery lr_finder notices",
    "serving train",
    "speed",
    "study",
    "reports overview",
    "demo",
    "api",
    "commands",
    "main predict __main__ data.__main__ models.__main__",
)
LEVELS = {
    name: level for level, names in enumerate(LAYERS) for name in names.split()
}
# Only what runs as a program: `python -m efficientnetv2.demo`.
ENTRIES = {("demo", "commands.predict")}


def _level(module: str) -> int | None:
    """Returns the layer of a module; None for the package itself."""
    name = module.removeprefix("efficientnetv2").removeprefix(".")
    while name and name not in LEVELS:
        name = name.rpartition(".")[0]
    return LEVELS.get(name)


@pytest.fixture(scope="module")
def edges():
    graph = grimp.build_graph("efficientnetv2")
    return [
        (module.removeprefix("efficientnetv2."), other)
        for module in sorted(graph.modules)
        for other in (
            name.removeprefix("efficientnetv2.")
            for name in graph.find_modules_directly_imported_by(module)
        )
        if module != "efficientnetv2" and other != "efficientnetv2"
    ]


def test_every_module_has_a_layer(edges):
    modules = {module for edge in edges for module in edge}
    assert len(modules) > 50
    assert not [name for name in modules if _level(name) is None]


def test_no_import_goes_up(edges):
    up = [
        f"{module} imports {other}"
        for module, other in edges
        if _level(other) > _level(module) and (module, other) not in ENTRIES
    ]
    assert not up, "\n".join(up)


def test_data_and_models_do_not_know_each_other(edges):
    packages = {"data", "models"}
    for module, other in edges:
        one, two = module.split(".")[0], other.split(".")[0]
        if {one, two} == packages and "__main__" not in module:
            raise AssertionError(f"{module} imports {other}")


def test_serving_does_not_import_training(edges):
    above = {"train", "runs", "engines", "evaluation", "recovery"}
    for module, other in edges:
        if module.startswith("serving."):
            assert other.split(".")[0] not in above, f"{module}: {other}"


def test_a_configuration_goes_down_only():
    """Nobody reads the configuration that another object was given."""
    libraries = {"self", "tf", "keras", "jax"}
    # Of a class of its own, and of the runs that a list shows.
    allowed = {"data/pipeline.py", "overview.py"}
    package = pathlib.Path(__file__).parent.parent / "efficientnetv2"
    for path in package.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        # A study makes the configuration of an arm.
        calls = [each.func for each in nodes if isinstance(each, ast.Call)]
        for node in nodes:
            if (
                isinstance(node, ast.Attribute)
                and node.attr == "config"
                and node not in calls
            ):
                owner = ast.unparse(node.value)
                name = str(path.relative_to(package))
                assert owner in libraries or name in allowed, (name, owner)
