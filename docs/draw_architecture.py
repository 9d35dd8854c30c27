"""Draws docs/architecture.svg: the packages of netkit, their modules, and what imports what.

    python docs/draw_architecture.py           # writes docs/architecture.svg
    python docs/draw_architecture.py --check   # exit status 1 if the file is not current

Reads the imports from the source and imports nothing of netkit. An arrow leads from a package to
one that it imports. An import that a longer path of arrows implies is left out, so that the drawing
stays readable: cli imports core, but no arrow shows it.
"""

from __future__ import annotations

import ast
import sys
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "netkit"
PICTURE = ROOT / "docs" / "architecture.svg"

WIDTH = 1000  # all lengths in pixels
MARGIN = 20
GAP = 46  # between floors, for the arrows
COLUMN = 118  # of one name of a module
ROW = 18
HEADER = 46

Graph = dict[str, set[str]]


def packages() -> dict[str, list[str]]:
    """The modules of each package, by the package's name; a folder among them ends with a slash."""
    found = {}
    for folder in sorted(path.parent for path in SOURCE.glob("*/__init__.py")):
        modules = [path.stem for path in folder.glob("*.py") if path.stem != "__init__"]
        folders = [f"{path.parent.name}/" for path in folder.glob("*/__init__.py")]
        found[folder.name] = sorted(modules + folders)
    return found


def imports(names: set[str]) -> Graph:
    """The packages that each package imports when the program runs."""
    found: Graph = {name: set() for name in names}
    for name in names:
        for path in (SOURCE / name).rglob("*.py"):
            level = len(path.relative_to(SOURCE).parts)  # of an import from another package
            found[name] |= set(_imported(ast.parse(path.read_text("utf-8")), level)) & names
        found[name].discard(name)
    return found


def _imported(tree: ast.AST, level: int) -> list[str]:
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.level == level:
            found += [node.module.split(".")[0]] if node.module else [a.name for a in node.names]
        found += _imported(node, level)
    return found


def floors(graph: Graph) -> list[list[str]]:
    """The packages from the bottom up: each is above all that it imports."""
    placed: dict[str, int] = {}
    while len(placed) < len(graph):
        free = [name for name in graph if name not in placed and graph[name] <= set(placed)]
        if not free:
            raise ValueError(f"a circle of imports among {sorted(set(graph) - set(placed))}")
        for name in free:
            placed[name] = 1 + max((placed[below] for below in graph[name]), default=-1)
    top = max(placed.values())
    return [sorted(name for name in placed if placed[name] == floor) for floor in range(top + 1)]


def without_implied(graph: Graph) -> Graph:
    """The same graph without each arrow that a longer path replaces."""

    def reached(name: str) -> set[str]:
        return graph[name].union(*(reached(below) for below in graph[name]))

    return {
        name: {
            below
            for below in graph[name]
            if not any(below in reached(other) for other in graph[name] - {below})
        }
        for name in graph
    }


def summary(name: str) -> str:
    """The first sentence of the package's docstring."""
    tree = ast.parse((SOURCE / name / "__init__.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").split(". ")[0].split(".\n")[0].rstrip(".")


def draw() -> str:
    """The picture as SVG."""
    modules = packages()
    graph = imports(set(modules))
    boxes, height = _boxes(modules, floors(graph))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"'
        f' viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
        "<title>The packages of netkit and their imports</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8"'
        ' markerHeight="8" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#456"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    parts += _arrows(without_implied(graph), boxes)  # first, so that they pass behind the boxes
    for name, box in boxes.items():
        parts += _box(name, modules[name], *box)
    return "\n".join([*parts, "</svg>", ""])


Box = tuple[int, int, int, int]  # left, top, width, height


def _boxes(modules: dict[str, list[str]], floors_up: list[list[str]]) -> tuple[dict[str, Box], int]:
    boxes: dict[str, Box] = {}
    y = MARGIN
    for floor in reversed(floors_up):
        free = WIDTH - 2 * MARGIN - MARGIN * (len(floor) - 1)
        weights = [len(modules[name]) + 4 for name in floor]
        x, tallest = MARGIN, 0
        for name, weight in zip(floor, weights, strict=True):
            width = free * weight // sum(weights)
            columns = max(1, (width - 20) // COLUMN)
            tall = HEADER + ROW * -(-len(modules[name]) // columns) + 8
            boxes[name] = (x, y, width, tall)
            x, tallest = x + width + MARGIN, max(tallest, tall)
        for name in floor:
            boxes[name] = (*boxes[name][:3], tallest)
        y += tallest + GAP
    return boxes, y - GAP + MARGIN


def _box(name: str, modules: list[str], x: int, y: int, width: int, tall: int) -> list[str]:
    parts = [
        f'<rect x="{x}" y="{y}" width="{width}" height="{tall}" rx="4" fill="#eef3f8"'
        ' stroke="#456"/>',
        f'<text x="{x + 10}" y="{y + 18}" font-size="15" font-weight="bold">{name}/</text>',
        f'<text x="{x + 10}" y="{y + 35}" font-size="11" fill="#456">'
        f"{escape(summary(name))}</text>",
    ]
    columns = max(1, (width - 20) // COLUMN)
    for index, module in enumerate(modules):
        row, column = divmod(index, columns)
        left, base = x + 10 + column * COLUMN, y + HEADER + 12 + row * ROW
        parts.append(f'<text x="{left}" y="{base}" font-size="12">{module}</text>')
    return parts


def _arrows(graph: Graph, boxes: dict[str, Box]) -> list[str]:
    parts = []
    for name in sorted(graph):
        for below in sorted(graph[name]):
            _, top, _, tall = boxes[name]
            left, _, width, _ = min(boxes[name], boxes[below], key=lambda box: box[2])
            x = left + width // 2
            parts.append(
                f'<line x1="{x}" y1="{top + tall}" x2="{x}" y2="{boxes[below][1]}" stroke="#456"'
                ' stroke-width="1.5" marker-end="url(#tip)"/>'
            )
    return parts


def main(arguments: list[str]) -> int:
    """Write the picture, or compare it with the file."""
    picture = draw()
    if arguments == ["--check"]:
        current = PICTURE.exists() and PICTURE.read_text(encoding="utf-8") == picture
        if not current:
            print("docs/architecture.svg is not current: run docs/draw_architecture.py")
        return 0 if current else 1
    if arguments:
        print("usage: draw_architecture.py [--check]", file=sys.stderr)
        return 2
    PICTURE.write_text(picture, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
