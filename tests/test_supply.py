"""Dependencies and foreign code: no call that runs a stranger's code; versions are stated, safe and tested."""

import ast
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from tools.audit import judge
from tools.lowest import bounds

ROOT = Path(__file__).parent.parent
CODE = [*(ROOT / "sdlora").rglob("*.py"), *(ROOT / "tools").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
RUNS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
"""Modules that run what they read."""
CALLS = {"os.system", "os.popen", "eval", "exec", "subprocess.getoutput", "subprocess.getstatusoutput",
         "shutil.unpack_archive", "yaml.load", "yaml.unsafe_load", "pandas.read_pickle", "pd.read_pickle"}  # fmt: skip
ARGUMENTS = {"shell": False, "trust_remote_code": False, "weights_only": True, "allow_pickle": False}
"""Arguments, and the one value that each may have."""
FLOORS = {
    "gradio": "6.20", "torch": "2.11", "transformers": "5.3", "diffusers": "0.38", "pillow": "12.3",
    "python-multipart": "0.0.27",
}  # fmt: skip
"""Versions before these have known holes in what is used here."""
SENSITIVE = {
    "anyio", "brotli", "certifi", "fastapi", "gradio-client", "h11", "hf-xet", "httpcore", "httpx", "idna", "jinja2",
    "markupsafe", "orjson", "pydantic-core", "pyyaml", "regex", "requests", "safehttpx", "tokenizers", "urllib3",
    "uvicorn",
}  # fmt: skip
"""Indirect dependencies that read a stranger's bytes: requests, answers, templates, files."""


def wrong(source):
    """The lines of ``source`` that are refused. Of what ruff bans too, this takes no ``noqa``."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        refused = any(name.split(".")[0] in RUNS for name in names)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            bare = called == "torch.load" and "weights_only" not in {keyword.arg for keyword in node.keywords}
            refused = called in CALLS or called.endswith(".extractall") or bare or any(map(_is_unsafe, node.keywords))
        if refused:
            found.append(node.lineno)
    return found


def _is_unsafe(keyword):
    if keyword.arg not in ARGUMENTS:
        return False
    value = keyword.value
    return not (isinstance(value, ast.Constant) and value.value is ARGUMENTS[keyword.arg])


@pytest.mark.parametrize(
    "line",
    ["subprocess.run('x', shell=True)", "run(shell=yes)", "os.system('x')", "os.popen('x')", "eval('x')", "exec('x')",
     "import pickle", "from pickle import loads", "import joblib", "torch.load('x')", "f(weights_only=False)",
     "f('x', trust_remote_code=True)", "f(trust_remote_code=trusted)", "zipfile.ZipFile('x').extractall()",
     "archive.extractall(path)", "numpy.load('x', allow_pickle=True)", "yaml.load('x')"],
)  # fmt: skip
def test_each_of_these_is_refused(line):
    assert wrong(f"x = 1\n{line}  # noqa") == [2]


@pytest.mark.parametrize(
    "line", ["model.eval()", "torch.load(x, weights_only=True)", "subprocess.run(['x'], shell=False)", "json.loads(x)"]
)
def test_what_only_looks_like_it_is_not(line):
    assert wrong(line) == []


def test_nothing_here_runs_a_strangers_code():
    found = {str(path.relative_to(ROOT)): wrong(path.read_text(encoding="utf-8")) for path in [*CODE, ROOT / "app.py"]}
    assert len(found) > 150
    assert {path: lines for path, lines in found.items() if lines} == {}


def pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(re.fullmatch(r"([\w-]+)==([\w.]+)", line).groups() for line in lines if not line.startswith("#"))


def parts(number):
    """A version to compare; of ``2.13.0+cpu``, what the index has."""
    found = [int(part) for part in re.findall(r"\d+", number.split("+")[0])]
    while found and not found[-1]:
        found.pop()
    return found


def plain(names):
    return {name.lower().replace("_", "-") for name in names}


def test_everything_that_matters_has_one_version():
    assert plain(bounds()) | SENSITIVE <= plain(pins())


@pytest.mark.parametrize("name", bounds())
def test_no_bound_is_above_what_is_tested_or_below_what_is_safe(name):
    assert parts(bounds()[name]) <= parts(pins()[name])
    assert parts(bounds()[name]) >= parts(FLOORS.get(name, "0"))
    assert set(FLOORS) <= set(bounds())


@pytest.mark.parametrize("name", pins())
def test_what_is_installed_is_what_is_stated(name):
    """The pinned version, or the lowest where that is tried."""
    try:
        installed = parts(version(name))
    except PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    assert installed in [parts(pins()[name]), parts(bounds().get(name, pins()[name]))]


AUDITED = '{"dependencies": [{"name": "a", "version": "1", "vulns": [%s]}%s]}'
FLAW = '{"id": "CVE-1", "fix_versions": ["2"]}'


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [(AUDITED % ("", ""), 0, "pip-audit knows of no vulnerability."),
     (AUDITED % (FLAW, ""), 1, "a 1: CVE-1, mended in 2"),
     (AUDITED % (FLAW, ', {"name": "b", "skip_reason": "x"}'), 1, "could not answer for 1 of 2 packages"),
     (AUDITED % ("", ', {"name": "b", "skip_reason": "x"}'), 0, "could not answer for 1 of 2 packages"),
     ("No module named pip_audit", 0, "could not answer: No module named pip_audit"), ("", 0, "could not answer")],
)  # fmt: skip
def test_a_known_vulnerability_fails_and_no_answer_does_not(answer, code, message):
    ended, lines = judge(answer)
    assert ended == code
    assert message in "\n".join(lines)
