"""The commands around 2D models: `models` fetches and lists their weights, `labels` shows and checks label spaces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

console = Console(stderr=True)  # for people; stdout is for what a command gives
models_app = typer.Typer(help="List and fetch the weights of 2D models.", no_args_is_help=True)
labels_app = typer.Typer(help="Show, check and compare label spaces.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else.")]
TINY = "tiny"  # stands for all files of the segmenter of this name


@models_app.command("list")
def list_models(as_json: Json = False) -> None:
    """List the models that the segmenters are known to fit, and which of them are here."""
    rows = _rows()
    if as_json:
        print(json.dumps(rows))
        return
    table = Table(title="models")
    for heading in ("name", "segmenter", "licence", "what", "here"):
        table.add_column(heading, no_wrap=heading in ("name", "segmenter"), overflow="fold")
    for row in rows:
        what = "\n".join(filter(None, (row["about"], row["hub_id"])))
        table.add_row(row["name"], row["segmenter"], row["license"], escape(what), "yes" if row["here"] else "no")
    console.print(table)
    console.print("any other of the hub: panoptic-mapper models get OWNER/NAME[@COMMIT]", markup=False)


@models_app.command("get")
def get_models(
    names: Annotated[list[str], typer.Argument(help="Names of the list, or hub ids OWNER/NAME[@REVISION].")],
    update: Annotated[bool, typer.Option(help="Take the hub's newest revision, and pin it.")] = False,
) -> None:
    """Fetch models into the cache, check them, and print where they are."""
    from panoptic_mapper import hub_models
    from panoptic_mapper.model_store import find_model

    for name in names:
        files = _files_of(name)
        for file in files:
            with _download_bar(file) as progress:
                print(find_model(file, progress=progress))
        if not files:
            print(hub_models.fetch(*hub_models.parse_hub_id(name)) if update else hub_models.find_checkpoint(name))


@models_app.command("path")
def model_path(name: Annotated[str, typer.Argument(help="A name of the list, or a hub id.")]) -> None:
    """Print where a model is, after its files were checked; nothing is fetched."""
    from panoptic_mapper import hub_models
    from panoptic_mapper.model_store import local_model

    files = _files_of(name)
    for file in files:
        print(local_model(file))
    if not files:
        print(hub_models.find_checkpoint(name, offline=True))


@labels_app.command("list")
def list_label_spaces(as_json: Json = False) -> None:
    """List the label spaces that come with the package."""
    from panoptic_mapper.label_spaces import load_label_space, shipped_label_spaces

    rows = []
    for name, file in shipped_label_spaces().items():
        space = load_label_space(name)
        rows.append({"name": name, "classes": len(space) - 1, "things": int(space.is_thing.sum()), "file": str(file)})
    if as_json:
        print(json.dumps(rows))
        return
    table = Table("name", "classes", "things", "file", title="label spaces")
    for row in rows:
        table.add_row(*(escape(str(value)) for value in row.values()))
    console.print(table)


@labels_app.command("show")
def show_label_space(
    name: Annotated[str, typer.Argument(help="A name of the list, or a file.")],
    to: Annotated[str, typer.Option(help="Another space: show what each class is there.")] = "",
    as_json: Json = False,
) -> None:
    """Show the classes of a label space, and what they are in another one."""
    from panoptic_mapper.label_spaces import class_table, load_label_space

    space = load_label_space(name)
    entries: list[dict[str, Any]] = space.to_dict()
    if to:
        target = load_label_space(to)
        for entry, index in zip(entries, class_table(space, target)[1:], strict=True):
            entry["to"] = target.names[index] if index else None
    if as_json:
        print(json.dumps(entries))
        return
    table = Table("id", "", "name", "kind", "synonyms", *([escape(to)] if to else []), title=escape(space.name or name))
    for entry, (r, g, b) in zip(entries, space.colors[1:].tolist(), strict=True):
        more = [entry["to"] or "-"] if to else []
        words = (escape(word) for word in (", ".join(entry.get("synonyms", [])), *more))
        kind = "thing" if entry["isthing"] else "stuff"
        table.add_row(str(entry["id"]), f"[rgb({r},{g},{b})]██[/]", escape(entry["name"]), kind, *words)
    console.print(table)


@labels_app.command("validate")
def validate_label_spaces(files: Annotated[list[Path], typer.Argument(help="YAML files with label spaces.")]) -> None:
    """Check label space files; every mistake is printed as file:line: what is wrong."""
    from panoptic_mapper.label_space_file import parse_label_space

    is_good = True
    for file in files:
        space, mistakes = parse_label_space(file)
        for mistake in mistakes:
            print(mistake)
        if space is None:
            is_good = False
        else:
            things = int(space.is_thing.sum())
            console.print(f"{file}: good, {len(space) - 1} classes, {things} of them things", markup=False)
    raise typer.Exit(0 if is_good else 1)


def _rows() -> list[dict[str, Any]]:
    from panoptic_mapper import hub_models
    from panoptic_mapper.model_store import MODELS, is_here

    size_mb = sum(model.size_bytes for model in MODELS.values()) / 1e6
    tiny = {
        "name": TINY,
        "hub_id": "",
        "segmenter": "tiny",
        "license": ", ".join(sorted({model.license for model in MODELS.values()})),
        "about": f"two small networks, {size_mb:.1f} MB, 45 indoor classes",
        "here": all(map(is_here, MODELS)),
    }
    return [
        tiny,
        *(
            {
                "name": name,
                "hub_id": model.repo,
                "segmenter": model.segmenter,
                "license": model.license,
                "about": model.about,
                "here": hub_models.find_in_cache(model.repo) is not None,
            }
            for name, model in hub_models.HUB_MODELS.items()
        ),
    ]


def _files_of(name: str) -> list[str]:
    """Names in MODELS that a name stands for; none where it is a model of the hub."""
    from panoptic_mapper.model_store import MODELS

    return list(MODELS) if name == TINY else [name] if name in MODELS else []


def _download_bar(name: str) -> Any:
    """A context whose value is told the bytes that are there and those that are expected."""
    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return _Bar(Progress(*columns, console=console))


class _Bar:
    """Shows a bar from the first byte on: none where the file is in the cache already."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: Any = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task("", total=total_bytes)
        self._progress.update(self._task, completed=done_bytes)
