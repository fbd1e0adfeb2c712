"""The package's structure: ``python -m benchmarks.structure``.

Prints the imports between its rooms (a room is a folder, or a module at the root; the scripts and the benchmarks are two more),
and the longest files.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "r2n2_jax"
LONGEST = 5


def room(module: str) -> str:
    """The room that a module of the package lies in."""
    return module.split(".")[1] if "." in module else "the face"


def imported(path: Path) -> Iterator[str]:
    """The package's modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else names
        yield from (name for name in names if name.split(".")[0] == PACKAGE)


def main() -> None:
    """Prints both tables."""
    arrows: dict[tuple[str, str], int] = {}
    files = {path: room(".".join(path.relative_to(ROOT).with_suffix("").parts)) for path in (ROOT / PACKAGE).rglob("*.py")}
    files |= dict.fromkeys(ROOT.glob("*.py"), "scripts") | dict.fromkeys((ROOT / "benchmarks").glob("*.py"), "benchmarks")
    for path, home in files.items():
        for module in imported(path):
            if room(module) != home:
                arrows[home, room(module)] = arrows.get((home, room(module)), 0) + 1
    rooms = sorted(set(files.values()))
    print(f"{len(rooms)} rooms, {len(arrows)} arrows between them\n\n| room | imports from |\n|---|---|")
    for home in rooms:
        print(f"| {home} | {', '.join(f'{to} ({count})' for (of, to), count in sorted(arrows.items()) if of == home)} |")
    lengths = sorted(((len(path.read_text(encoding="utf-8").splitlines()), path) for path in files), reverse=True)
    print("\n| longest files | lines |\n|---|---|")
    for length, path in lengths[:LONGEST]:
        print(f"| {path.relative_to(ROOT)} | {length} |")


if __name__ == "__main__":
    main()
