"""README and docs are true where a machine can tell: links, commands, options, names, the example, imports."""

import ast
import importlib.util
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import typer.main

from panoptic_mapper import cli
from panoptic_mapper.config import iter_parameters
from panoptic_mapper.losses import LossWeights
from panoptic_mapper.mapper import MapperConfig
from panoptic_mapper.ros.node_config import NodeConfig

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MAPPER_DOCUMENTS = [ROOT / "docs/method.md", ROOT / "docs/architecture.md", ROOT / "docs/conventions.md"]
COMMANDS = typer.main.get_command(cli.app).commands
METHOD = ROOT / "docs/method.md"
SETTINGS = re.compile(r"(?<=<!-- settings -->\n).*?(?=<!-- /settings -->)", re.DOTALL)
README = (ROOT / "README.md").read_text()


def anchors(document):
    """Anchors of headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(document):
    links = re.findall(r"\]\(([^)\s]+)\)", document.read_text())
    for link in links:
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        assert target.exists(), f"{document.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{document.name}: {link}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_their_options_exist(document):
    for line in re.findall(r"panoptic-mapper ([a-z][^`\n]*)", document.read_text().replace("\\\n", " ")):
        name, *words = line.split("#")[0].split()
        if name not in COMMANDS and not words:  # a word of a sentence
            continue
        assert name in COMMANDS, line
        command = COMMANDS[name]
        if hasattr(command, "commands"):
            assert words[0] in command.commands, line
            command = command.commands[words[0]]
        options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert {word for word in words if re.fullmatch(r"--?[a-z][\w-]*", word)} <= options, line


def test_every_command_has_an_example_in_the_readme():
    assert {name for name in COMMANDS if f"\npanoptic-mapper {name}" in README} == set(COMMANDS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_exist(document):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"^    make ([a-z-]+)|`make ([a-z-]+)", document.read_text(), re.M)) <= {
        pair for target in targets for pair in ((target, ""), ("", target))
    }


def test_parameters_of_the_readme_exist():
    names = {parameter.name for parameter in iter_parameters(NodeConfig)}
    rows = re.findall(r"^\| `([\w.]+)` \| ", README.split("## Parameters to know")[1].split("\n## ")[0], re.M)
    assert len(rows) > 5
    assert set(rows) <= names


def settings_table():
    """The table of the mapper's settings in docs/method.md; `PYTHONPATH=. python test/test_docs.py` renews it."""
    rows = ["| setting | default | what |", "|---|---|---|"]
    return "\n".join(
        [*rows, *(f"| `{p.name}` | `{p.default}` | {p.help} |" for p in iter_parameters(MapperConfig)), ""]
    )


def test_the_table_of_settings_is_that_of_the_code():
    assert SETTINGS.search(METHOD.read_text()).group() == settings_table(), "run: PYTHONPATH=. python test/test_docs.py"


def test_topics_of_the_readme_are_the_defaults():
    defaults = {parameter.name: parameter.default for parameter in iter_parameters(NodeConfig)}
    rows = re.findall(r"^\| `(topics\.\w+)` \| `([^`]*)` \|", README, re.M)
    assert dict(rows) == {name: value for name, value in defaults.items() if name.startswith("topics.")}


def test_names_in_the_documents_exist_in_the_code():
    """`module.name` is a function, class or constant, or a setting of the mapper."""
    modules = {path.stem for path in (ROOT / "panoptic_mapper").iterdir()}
    settings = {parameter.name for parameter in iter_parameters(MapperConfig)}
    groups = {name.split(".")[0] for name in settings}
    found = 0
    for document in MAPPER_DOCUMENTS:
        for name in re.findall(r"`([a-z_]+\.[A-Za-z_][\w.]*)`", document.read_text()):
            module, *path = name.split(".")
            if module not in modules | groups or path[0] in ("py", "md", "yaml", "json", "ply"):
                continue
            found += 1
            assert name.removeprefix("mapper.") in settings or has_name(f"panoptic_mapper.{module}", path), (
                f"{document.name}: {name}"
            )
    assert found > 60


def has_name(module, path):
    if importlib.util.find_spec(module) is None:
        return False
    value = importlib.import_module(module)
    for part in path:
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True


def test_every_term_of_the_loss_is_explained():
    rows = set(re.findall(r"^\| (\w+) \| .* \| `", METHOD.read_text(), re.M))
    not_weights = {"ssim_share", "max_scale_m"}
    assert rows == {parameter.name for parameter in iter_parameters(LossWeights)} - not_weights


def test_the_example_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert 'open_dataset("synthetic")' in example
    small = example.replace('"synthetic"', '"synthetic:num_frames=3,width=96,height=72"')
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(small, "README.md", "exec"), names)
    assert capsys.readouterr().out.count("\n") == len(names["mapper"].objects()) > 0
    assert names["view"].semantic.shape == (72, 96)
    assert (tmp_path / "room.pmap").stat().st_size > 0


def test_imports_point_one_way():
    package = ROOT / "panoptic_mapper"
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
               for path in package.rglob("*.py")}  # fmt: skip
    graph = {name: imported_on_load(path, set(modules)) for name, path in modules.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError
    ros = {name for name in modules if name.startswith("panoptic_mapper.ros")}
    assert [name for name, imported in graph.items() if name not in ros and imported & ros] == []


def imported_on_load(path, modules):
    """Names, of those in `modules`, that loading the file imports; not those inside functions."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & modules
            names |= submodules or {node.module}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names & modules


if __name__ == "__main__":
    METHOD.write_text(SETTINGS.sub(lambda _: settings_table(), METHOD.read_text()))
