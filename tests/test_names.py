"""A name has one meaning: no two classes of the package share one."""

import ast
from collections import defaultdict

from tests import ROOT

PACKAGE = ROOT / "cipo_jax"


def classes(source: str) -> list[str]:
    """Names of the classes and type aliases of a module, without a leading underscore."""
    found = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            found.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [
                target.id
                for target in targets
                if isinstance(target, ast.Name) and is_class_name(target.id)
            ]
    return [name.removeprefix("_") for name in found]


def is_class_name(name: str) -> bool:
    return (
        name.removeprefix("_")[:1].isupper()
        and any(c.islower() for c in name)
        and "_" not in name[1:]
    )


def shared(sources: dict[str, str]) -> dict[str, list[str]]:
    """The names that several modules define, with those modules."""
    places = defaultdict(list)
    for place, source in sources.items():
        for name in classes(source):
            places[name].append(place)
    return {name: where for name, where in places.items() if len(where) > 1}


def test_no_two_classes_share_a_name() -> None:
    sources = {str(p.relative_to(PACKAGE)): p.read_text() for p in sorted(PACKAGE.rglob("*.py"))}
    assert not shared(sources)


def test_a_shared_name_would_be_found() -> None:
    one, other = "class Scores:\n    pass\n", "_Scores = dict[str, float]\nLIMIT = 3\n"
    assert shared({"a.py": one, "b.py": other}) == {"Scores": ["a.py", "b.py"]}
