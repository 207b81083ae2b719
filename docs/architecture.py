"""The picture and the table of rooms in `docs/architecture.md`, made from the code.

    python docs/architecture.py        # writes them; a test compares

Needs networkx (requirements-dev.txt).
"""

import ast
from pathlib import Path

import networkx

DOCS = Path(__file__).resolve().parent
LIBRARY = DOCS.parent / "k400tiny_lib"
PAGE = DOCS / "architecture.md"
BEGIN, END = "<!-- rooms: begin -->", "<!-- rooms: end -->"

# Everything may import these: an arrow to each would hide the others.
GROUND = "errors, files, system, ..."


def rooms() -> list[Path]:
    """The folders of the library, and its files without one."""
    return sorted(path for path in LIBRARY.iterdir() if (path / "__init__.py").exists())


def room_of(dotted: str) -> str:
    """The room of a module by its name within the library."""
    room = dotted.partition(".")[0]
    return room if (LIBRARY / room).is_dir() else GROUND


def imports() -> networkx.DiGraph:
    """Rooms and `steps`, with an edge to each room that one imports from.

    `config` takes the names of the architectures from a table in `models` that imports nothing: no
    arrow.
    """
    graph = networkx.DiGraph()
    sources = {"steps": DOCS.parent / "steps"} | {room.name: room for room in rooms()}
    for name, folder in sources.items():
        graph.add_node(name)
        for file in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                module = node.module if isinstance(node, ast.ImportFrom) else None
                if module and module.startswith("k400tiny_lib."):
                    dotted = module.removeprefix("k400tiny_lib.")
                    if dotted != "models.architectures":
                        graph.add_edge(name, room_of(dotted))
    graph.remove_edges_from(list(networkx.selfloop_edges(graph)))
    return graph


def mermaid() -> str:
    """The imports as a Mermaid picture; arrows that follow from others are left out."""
    graph = networkx.transitive_reduction(imports())
    lines = [f'    {name.split(",")[0]}["{name}"]' for name in sorted(graph.nodes)]
    lines += [f"    {a.split(',')[0]} --> {b.split(',')[0]}" for a, b in sorted(graph.edges)]
    return "\n".join(["```mermaid", "graph TD", *lines, "```"])


def table() -> str:
    """Each folder of the library, with the first sentence of its docstring and its modules."""
    lines = ["| room | what is in it | modules |", "| --- | --- | --- |"]
    for init in sorted(LIBRARY.rglob("__init__.py"))[1:]:
        about = ast.get_docstring(ast.parse(init.read_text())) or ""
        modules = sorted(path.stem for path in init.parent.glob("[!_]*.py"))
        room = init.parent.relative_to(LIBRARY).as_posix()
        lines.append(f"| `{room}/` | {about.splitlines()[0]} | {', '.join(modules)} |")
    return "\n".join(lines)


def page() -> str:
    """The page with a new picture and table."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n\n{mermaid()}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page())
