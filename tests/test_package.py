"""The house: what is public, what is light, and which way imports go."""

import ast
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

import palidecode

FACE = Path(palidecode.__file__)
ROOT = FACE.parent
HEAVY = ("torch", "onnxruntime", "ray", "transformers", "matplotlib", "cv2", "pycocotools")
HEAVY += ("hotcoco", "msgspec", "jinja2")
ROWS = [
    ("errors", "vocab", "version", "cores", "wording"),
    ("files", "prompts"),
    ("answers", "geometry", "codec", "runtime", "drawing", "interop"),
    ("detections",),
    ("coco", "formats"),
    ("pipeline", "evaluation", "finetune"),
    ("report", "runs"),
    ("ray_data", "trainer", "serve", "demo", "benchmark"),
    ("cli",),
]
"""From the ground up: a room imports from the rows above it here, never from its own."""
ONLY_THESE_RUN_A_MODEL = {"pipeline", "trainer"}


def names_for_type_checkers(module):
    """Names of `from a import b as b` under `if TYPE_CHECKING …`."""
    for node in module.body:
        if isinstance(node, ast.If) and ast.unparse(node.test).startswith("TYPE_CHECKING"):
            for line in node.body:
                yield from (alias.asname for alias in line.names if alias.asname == alias.name)


def test_every_public_name_is_there_and_nothing_else():
    for name in palidecode.__all__:
        assert getattr(palidecode, name) is not None
    assert sorted(palidecode.__all__) == palidecode.__all__
    assert set(palidecode.__all__) <= set(dir(palidecode))
    face = ast.parse(FACE.read_text())
    assert sorted(names_for_type_checkers(face)) == palidecode.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = palidecode.nothing


def test_rooms_need_no_import_of_their_own():
    code = (
        "import palidecode; assert palidecode.report.write_report and palidecode.ray_data.predict"
    )
    assert "palidecode.report.page" in loaded_after(code)


def test_without_its_source_the_package_still_has_every_name(tmp_path):
    """As in an application that was packed without sources."""
    code = "import builtins; real = builtins.open\n"
    code += "def refuse(path, *rest, **named):\n"
    code += "    if str(path).endswith('__init__.py'): raise FileNotFoundError(path)\n"
    code += "    return real(path, *rest, **named)\n"
    code += "builtins.open = refuse\n"
    code += "import palidecode; assert callable(palidecode.parse) and callable(palidecode.to_coco)"
    assert "palidecode.coco.writing" in loaded_after(code)


def test_public_names_have_docstrings():
    bare = [name for name in palidecode.__all__ if not getattr(palidecode, name).__doc__]
    assert bare == []


def test_modules_do_not_hide_public_names():
    for path in ROOT.iterdir():
        assert path.stem not in palidecode.__all__, f"{path} hides palidecode.{path.stem}"


def loaded_after(code):
    show = "import sys; print(' '.join(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{show}"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_import_loads_nothing_heavy():
    assert not loaded_after("import palidecode") & {*HEAVY, "numpy"}


def test_reading_text_loads_numpy_alone():
    code = "import palidecode; palidecode.parse('<loc0001><loc0002><loc0003><loc0004> cat')"
    assert not loaded_after(code) & set(HEAVY)


def test_decoding_boxes_and_masks_needs_no_torch():
    code = (
        "import palidecode as p\n"
        "text = '<loc0001><loc0002><loc0900><loc0900>' + '<seg007>' * 16 + ' cat'\n"
        "p.to_coco(p.decode(text, (64, 64), p.load_codec('palidecode-demo')))"
    )
    assert not loaded_after(code) & {"torch", "ray", "transformers", "matplotlib"}


def test_commands_need_no_module_that_windows_lacks(tmp_path):
    lacking = ("fcntl", "grp", "pwd", "pty", "resource", "termios", "tty")
    text = "<loc0100><loc0200><loc0700><loc0800> boat"
    path = tmp_path / "coco.json"
    (tmp_path / "answers.jsonl").write_text(json.dumps({"output": text, "width": 64, "height": 64}))
    code = "import os, signal, sys\n"
    code += f"for name in {lacking}: sys.modules[name] = None\n"
    code += "for name in ('fork', 'setpgid', 'O_NOFOLLOW', 'mkfifo'): delattr(os, name)\n"
    code += "from palidecode.cli import main\n"
    code += (
        f"assert main(['decode', {str(tmp_path / 'answers.jsonl')!r}, '-o', {str(path)!r}]) == 0\n"
    )
    code += f"assert main(['view', {str(path)!r}, '-o', {str(tmp_path / 'page')!r}]) == 1\n"
    loaded_after(code)
    assert len(json.loads(path.read_text())["annotations"]) == 1


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT.parent / "CITATION.cff").read_text())
    assert citation["version"] == palidecode.__version__
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


def imports_of(path):
    """Modules of the package that a file imports, at the top or inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("palidecode"):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if is_module(full) else node.module
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("palidecode."))


def is_module(name):
    path = ROOT.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


FILES = [path for path in ROOT.rglob("*.py") if room_of(path) not in ("__init__", "__main__")]


def test_imports_point_strictly_down():
    row_of = {room: row for row, rooms in enumerate(ROWS) for room in rooms}
    arrows = {}
    for path in FILES:
        for module in imports_of(path):
            assert module != "palidecode", f"{path} imports the face of the package"
            arrows.setdefault((room_of(path), module.split(".")[1]), path)
    for (room, target), path in arrows.items():
        if room == target:
            continue
        down = row_of[target] < row_of[room]
        allowed = target != "runtime" or room in ONLY_THESE_RUN_A_MODEL
        assert down, f"{path}: {room} imports {target}"
        assert allowed, f"{path}: {room} imports {target}"
    assert {room for room, _ in arrows} | {target for _, target in arrows} == {*row_of}


def module_of(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_imports_go_in_circles():
    arrows = {module_of(path): set(imports_of(path)) for path in FILES}
    done = set()

    def walk(module, trail):
        assert module not in trail, " -> ".join([*trail, module])
        if module not in done:
            for target in sorted(arrows.get(module, ())):
                walk(target, [*trail, module])
            done.add(module)

    for module in sorted(arrows):
        walk(module, [])


def torch_imports(node, at_once=True):
    """For every import of torch, True if importing the module runs it."""
    for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    if for_types or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        at_once = False
    elif isinstance(node, ast.Import):
        yield from (at_once for name in node.names if name.name.split(".")[0] == "torch")
    elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
        yield at_once
    for child in ast.iter_child_nodes(node):
        yield from torch_imports(child, at_once)


def test_torch_is_imported_only_where_it_belongs():
    """At once in the runtime and the codec's network; when it is used where those are called."""
    when_used = (
        ROOT / "detections" / "objects.py",
        ROOT / "interop.py",
        ROOT / "runs" / "answers.py",
    )
    for path in ROOT.rglob("*.py"):
        imports = list(torch_imports(ast.parse(path.read_text())))
        home = path.name in ("network.py", "pytorch.py")
        home |= path.parent in (ROOT / "runtime", ROOT / "trainer")
        assert home or not imports or (path in when_used and not any(imports)), path
    assert {True, False} == set(
        torch_imports(ast.parse("import torch.nn\ndef f():\n    from torch import nn"))
    )


def test_serving_needs_no_torch():
    code = "from palidecode.pipeline import PaliDecoder\n"
    code += "from palidecode.serve import create_app\n"
    code += "from palidecode.serve import server\n"
    code += "create_app(PaliDecoder.from_pretrained('demo', engine='onnx'))"
    assert not loaded_after(code) & {"torch", "ray", "transformers", "matplotlib"}


def test_evaluate_loads_no_notebook():
    code = "import palidecode.cli.evaluate"
    assert not loaded_after(code) & {"IPython", "matplotlib", "torch"}


def test_the_pipeline_loads_torch_when_a_model_is_loaded():
    for name in ("pipeline", "pipeline.checkpoint", "runtime.grammar"):
        heavy = {"torch", "tokenizers", "transformers", "huggingface_hub", "onnxruntime"}
        assert not loaded_after(f"import palidecode.{name}") & heavy
    assert "torch" not in loaded_after("import palidecode as p; p.PaliDecoder, p.GrammarOptions")


def test_pictures_become_pixels_without_torch():
    assert not loaded_after("import palidecode.runtime.image") & {*HEAVY, "tokenizers"}


def imported(path):
    """Every module that a file imports, as it is written."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_one_module_imports_hotcoco():
    users = [path for path in FILES if "hotcoco" in {name.split(".")[0] for name in imported(path)}]
    assert users == [ROOT / "evaluation" / "coco" / "engine.py"]


def test_only_the_tests_of_training_import_it():
    tests = ROOT.parent / "tests"
    for path in [*FILES, *tests.rglob("*.py")]:
        uses = any(module.split(".")[0] == "training" for module in imported(path))
        assert not uses or path.parent == tests / "training", path


def test_names_of_files_are_subjects():
    stems = {path.stem for path in ROOT.rglob("*.py")}
    assert not stems & {"utils", "util", "helpers", "common", "misc", "tools", "base"}


def functions_of(path):
    """A module's functions and its classes' methods, without those inside of others."""
    for node in ast.parse(path.read_text()).body:
        inside = node.body if isinstance(node, ast.ClassDef) else [node]
        yield from (item for item in inside if isinstance(item, ast.FunctionDef))


def test_keywords_of_functions_are_named():
    """`**options: Any` would accept a misspelled option, and hide where it ends up."""
    bags = Counter()
    for path in FILES:
        for function in functions_of(path):
            bag = function.args.kwarg
            if bag and bag.annotation and ast.unparse(bag.annotation) == "Any":
                bags[room_of(path)] += 1
    # Attributes of ONNX nodes are whatever ONNX knows.
    assert bags <= Counter(codec=1), bags


OPENERS = {"What", "Whether", "How", "Where", "Which", "Who", "Whose", "When", "Why", "That", "Of"}
OPENERS |= {"Let", "Nothing", "Everything", "Anything", "Beside", "Behind", "Have", "Because"}
"""Docstrings open with a verb, or with the noun that is returned."""


@pytest.mark.parametrize("room", sorted({room_of(path) for path in FILES}))
def test_docstrings_open_plainly(room):
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if room_of(path) == room and isinstance(node, documented):
                first = (ast.get_docstring(node) or "").partition("\n")[0]
                assert first.partition(" ")[0] not in OPENERS, f"{path}: {first}"


def test_tests_mirror_the_rooms():
    tests = ROOT.parent / "tests"
    for room in {room_of(path) for path in FILES} - {"cores", "errors", "version", "vocab"}:
        one = tests / f"test_{room}.py"
        fast = [path for path in tests.glob(f"{room}/**/test_*.py") if not slow_as_a_whole(path)]
        assert one.is_file() or fast, f"{room} has no fast tests of its own"


def slow_as_a_whole(path):
    return any(
        isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
        for node in ast.parse(path.read_text()).body
    )
