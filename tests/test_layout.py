"""Rules of the code and its language that can be checked: sizes, imports, attributes and words."""

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tiny_imagenet import ROOT

MAX_ROOT_MODULES = 12
MAX_LINES = 250  # of a file of the product
MAX_CODE_LINES = 3_165  # of the product, without blank lines, comments and docstrings

ROOT_FILES = sorted(ROOT.glob("*.py"))
PRODUCT = [*ROOT_FILES, *sorted(ROOT.glob("tiny_imagenet/*.py"))]
SOURCES = [*PRODUCT, *(path for name in ("tools", "benchmarks", "tests") for path in sorted(ROOT.glob(f"{name}/*.py")))]
PAGES = ("*.md", "docs/*.md", "results/**/*.md", "pretrained/**/*.md", "notebooks/*.ipynb")
TEXTS = [*SOURCES, *(path for pattern in PAGES for path in sorted(ROOT.glob(pattern)))]

ASSIGNED_FROM_OUTSIDE = {  # attributes of other libraries' objects that can only be set by assignment
    "learning_rate": "a Keras optimizer's",
    "trainable": "a Keras layer's",
    "stop_training": "a Keras model's, by which a callback ends `fit`",
    "apply_default_optimizations": "of tf.data.Options",
    "enabled": "of tf.data.Options",
}
UNWANTED = {  # regular expression -> what to write instead
    "pictures?": "image",
    "colour(s|ed)?": "color",
    "centres?|centred": "center",
    "grey(scale)?": "gray, grayscale",
    r"\w*(normalis|initialis|regularis|optimis|organis|recognis|summaris)\w*": "American spelling: -ize",
    "behaviours?|licences?|neighbours?": "American spelling",
    "anew": "again",
    "go(es)? on|went on|going on": "continue, resume",
    "besides?": "next to, alongside, in addition",
    "of today": "current, modern",
    "the rate": "the learning rate",
    "so far as|what it makes of|is had again": "a plainer phrase",
    "one[_ ]cycle": "linear",
}


def code_lines(path: Path) -> int:
    """Lines that hold code: no blank lines, comments or docstrings."""
    text = path.read_text()
    strings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            strings.update(range(node.lineno, node.end_lineno + 1))
    other = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in other]
    return len({line for token in tokens for line in range(token.start[0], token.end[0] + 1)} - strings)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in SOURCES}


def own_imports(tree: ast.AST) -> Iterator[str]:
    """The names of our own modules that a file, or a part of it, imports."""
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in names]
        yield from (name for name in names if name in MODULES)


def test_the_root_holds_few_modules_and_no_file_is_long():
    assert len(ROOT_FILES) <= MAX_ROOT_MODULES
    lengths = {path.name: len(path.read_text().splitlines()) for path in PRODUCT}
    assert {name: count for name, count in lengths.items() if count > MAX_LINES} == {}
    assert sum(map(code_lines, PRODUCT)) <= MAX_CODE_LINES


def test_imports_go_one_way():
    imports = {module_name(path): set(own_imports(ast.parse(path.read_text()))) for path in PRODUCT}
    for module, imported in imports.items():
        allowed = {name for name in MODULES if name.startswith("tiny_imagenet")}
        allowed |= set() if module.startswith("tiny_imagenet") else {path.stem for path in ROOT_FILES}
        assert imported <= allowed, f"{module} imports {imported - allowed}"
    tuple(TopologicalSorter(imports).static_order())  # raises CycleError


def test_our_own_modules_are_imported_at_the_top():
    for path in PRODUCT:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert list(own_imports(node)) == [], f"{path.name}: {node.name}"


def test_nobody_sets_the_attributes_of_other_objects():
    for path in PRODUCT:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
                owner = node.value.id if isinstance(node.value, ast.Name) else None
                allowed = owner in ("self", "cls") or node.attr in ASSIGNED_FROM_OUTSIDE
                assert allowed, f"{path.name}:{node.lineno}: {ast.unparse(node)}"


def text_of(path: Path) -> str:
    """What someone wrote in a file: all of it; of a notebook, the cells without their output."""
    if path.suffix != ".ipynb":
        return path.read_text()
    return "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])


@pytest.mark.parametrize("words", UNWANTED)
def test_unwanted_words_do_not_appear(words):
    files = [path for path in TEXTS if path != Path(__file__)]
    pattern = re.compile(rf"(?<![^\W_])({words})(?![^\W_])", re.IGNORECASE)  # an underscore ends a word too
    found = [f"{path.name}: {match[0]}" for path in files for match in pattern.finditer(text_of(path))]
    assert found == [], f"write instead: {UNWANTED[words]}"


def test_no_local_name_hides_a_function_of_its_module():
    for path in PRODUCT:
        tree = ast.parse(path.read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        for outer in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            inside = [node for statement in outer.body for node in ast.walk(statement)]
            names = {node.id for node in inside if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
            names |= {node.name for node in inside if isinstance(node, ast.FunctionDef)}
            names |= {node.arg for node in ast.walk(outer) if isinstance(node, ast.arg)}
            assert names & functions == set(), f"{path.name}: {outer.name}"


def test_every_constant_is_used():
    text = "\n".join(path.read_text() for path in SOURCES)
    for path in PRODUCT:
        for node in ast.parse(path.read_text()).body:
            is_annotated = isinstance(node, ast.AnnAssign)
            targets = [node.target] if is_annotated else node.targets if isinstance(node, ast.Assign) else []
            for name in (name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)):
                assert name == "__all__" or len(re.findall(rf"\b{name}\b", text)) > 1, f"{path.name}: {name}"
