"""Names, presets, flags, prompts and settings from strangers: kept in their folder, read, or refused in a sentence."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdlora.api.training import list_runs, prepare_run
from sdlora.config import TrainConfig, all_settings
from sdlora.data.projects import Project, ProjectInfo, list_projects
from sdlora.errors import ConfigError, SdloraError
from sdlora.filesystem.paths import path_inside, safe_name
from sdlora.formats import lora_tags
from sdlora.generation import axes, infotext, prompt_weighting
from sdlora.ui import adapter_rows, images_tab, library_tab
from sdlora.ui.app_state import AppState
from sdlora.ui.endpoint_arguments import check_arguments
from sdlora.ui.endpoints import Endpoints
from tests.support import hostile_files
from tests.support.hostile_files import Refused
from tests.support.images import noise_image
from tests.support.page_calls import build_create_tab, build_library_tab, delete_project, drop_files, form_values

Command = Callable[..., Refused]
NAMES = {
    "a way up": "../../x", "an absolute path": "/etc/passwd", "a drive": "C:\\x", "a device of Windows": "CON",
    "a device with an ending": "nul.txt", "300 letters": "a" * 300, "300 letters of four bytes": "\U00020000" * 300,
    "a line break": "a\nb", "a mark that turns text around": "a\u202egnp.exe", "NUL": "a\0b", "a surrogate": "a\ud800b",
    "letters that unfold": "\ufdfa" * 100, "HTML": "<img src=x onerror=alert(1)>",
    "a home": "~root/x", "spaces": "  x  ",
}  # fmt: skip
NOTHING = {"nothing": "", "dots": "../..", "blanks": " \u3000 ", "dashes": "--._"}
QUICK = settings(
    max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, derandomize=True
)


def below(root: Path, path: Path) -> bool:
    return path.resolve().is_relative_to(root.resolve()) and path.resolve() != root.resolve()


def fits_everywhere(name: str) -> bool:
    """Return whether a name, with an ending, a number and a temporary file's mark, is valid on every system."""
    stem = name.split(".")[0].lower()
    devices = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
    return (
        name.isprintable() and len(name.encode()) <= 200 and stem not in devices and name.strip(". ") == name
        and not set(name) & set('<>:"/\\|?*')
    )  # fmt: skip


@QUICK
@given(name=st.text(max_size=400) | st.sampled_from([*NAMES.values(), *NOTHING.values()]))
def test_a_name_of_any_text_is_a_file_in_its_folder_on_every_system(name: str, tmp_path: Path) -> None:
    safe = safe_name(name)
    assert fits_everywhere(safe)
    (tmp_path / f"{safe}-2.safetensors").touch()
    assert below(tmp_path, path_inside(tmp_path, safe))


@QUICK
@given(name=st.text(max_size=400) | st.sampled_from([*NAMES.values(), *NOTHING.values()]))
def test_any_text_leads_inside_or_is_refused(name: str, tmp_path: Path) -> None:
    try:
        assert path_inside(tmp_path, name).is_relative_to(tmp_path.resolve())
    except SdloraError as error:
        assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize("case", NAMES)
def test_a_hostile_name_becomes_one_in_its_folder_through_every_door(
    app: AppState, configure: Callable[..., TrainConfig], tmp_path: Path, case: str
) -> None:
    name = NAMES[case]
    noise_image().save(tmp_path / "a.png")
    drop_files(app, [tmp_path / "a.png"], name)
    (project,) = (path for path in (app.data_dir / "projects").iterdir() if path.is_dir())
    assert fits_everywhere(project.name)
    run = prepare_run(configure(), name, app.data_dir)
    assert below(app.data_dir / "runs", run.folder) and fits_everywhere(run.name)
    assert fits_everywhere(app.library.choose_name(f"2 {name}", "x"))
    item = app.library.delete_project(name)
    assert below(app.data_dir / "trash", item.folder)
    there = {path.name for path in app.data_dir.iterdir() if path.suffix != ".lock"}
    assert there <= {"projects", "runs", "trash", "locks", "adapters"}


@pytest.mark.parametrize("case", NOTHING)
def test_a_project_without_a_name_is_refused_on_the_page(app: AppState, tmp_path: Path, case: str) -> None:
    noise_image().save(tmp_path / "a.png")
    for message in (
        drop_files(app, [tmp_path / "a.png"], NOTHING[case]),
        images_tab._status(app, NOTHING[case])[0],
        delete_project(app, NOTHING[case]),
    ):
        assert "Give the project a name" in message
    assert not (app.data_dir / "projects").exists()


def endpoints(app: AppState) -> dict[str, Callable[..., Any]]:
    """The page's endpoints for programs, as they are called: with all their arguments."""
    ends = Endpoints(app)
    return {name: check_arguments(getattr(ends, name)) for name in ("train", "status", "stop", "resume", "export")}


@pytest.mark.parametrize("case", [*NAMES, *NOTHING])
def test_a_hostile_name_finds_nothing_through_the_endpoints(
    app: AppState, configure: Callable[..., TrainConfig], case: str
) -> None:
    name, ends = (NAMES | NOTHING)[case], endpoints(app)
    for call in (
        lambda: ends["train"]("x", None, name, "style", "", "pocket", "Quick", None, None, None),
        lambda: ends["status"](name, False), lambda: ends["stop"](name), lambda: ends["resume"](name),
        lambda: ends["export"](name, "kohya", "fp32"),
    ):  # fmt: skip
        with pytest.raises(gr.Error) as refused:
            call()
        assert "Traceback" not in str(refused.value)
    assert not (app.data_dir / "runs").exists()


@pytest.mark.parametrize("act", ["open", "resume", "duplicate"])
def test_the_page_opens_no_run_outside_its_folder(
    app: AppState, configure: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    """Names of clicked cards come from the browser, and a program may send any."""
    run = prepare_run(configure(), "strangers", tmp_path / "elsewhere")
    monkeypatch.chdir(run.folder.parent)
    built = build_library_tab(app)
    for name in (str(run.folder), "strangers", "../../elsewhere/runs/strangers"):
        text = unescape(str(library_tab._act(app, *built, act, name)[built[0].message]))
        assert "no such run" in text or "lies outside" in text
    assert list_runs(app.data_dir) == []


MISTAKES = [
    ("train.steps", "0", "greater than or equal to 1"),
    ("adapter.rank", "-1", "greater than or equal to 1"),
    ("train.learning_rate", "nan", "finite number"),
    ("train.seed", "1e99", "valid integer"),
    ("train.batch_size", "9" * 400, "less than or equal to 4096"),
    ("adapter.rnak", "4", "did you mean"),
    ("sample.sampler", "Eulr a", "Euler a"),
    ("data.background", "red; x", "data.background"),
]


@pytest.mark.parametrize(("name", "value", "reason"), MISTAKES)
def test_a_wrong_setting_is_refused_through_every_door(
    command: Command, app: AppState, tmp_path: Path, name: str, value: str, reason: str
) -> None:
    ended = command("train", "pocket-style", f"--{name}", value)
    assert ended.code == 2 and reason in ended.sentence and name in ended.sentence
    with pytest.raises(ConfigError, match=re.escape(reason)):
        TrainConfig.load("pocket-style", {name: value})
    project = Project(app.data_dir, "mine")
    for number in range(3):
        noise_image(seed=number).save(tmp_path / f"{number}.png")
    project.add([tmp_path / f"{number}.png" for number in range(3)])
    project.set_info(ProjectInfo())
    with pytest.raises(gr.Error, match=re.escape(reason)):
        endpoints(app)["train"]("x", None, "mine", "style", "", "pocket", "Quick", None, {name: value}, None)
    assert not (app.data_dir / "runs").exists()


def test_what_is_kept_of_a_refused_training_is_a_project_of_the_page(app: AppState, tmp_path: Path) -> None:
    noise_image().save(tmp_path / "a.png")
    Project(app.data_dir, "mine").add([tmp_path / "a.png"])
    with pytest.raises(gr.Error, match="Add at least 3"):
        endpoints(app)["train"]("ohwx", None, "mine", "style", "", "pocket", "Quick", None, {}, None)
    assert [(project.name, project.info) for project in list_projects(app.data_dir)] == [
        ("mine", ProjectInfo("style", "ohwx"))
    ]


PRESETS: dict[str, tuple[hostile_files.Maker, str]] = {
    "an unknown key": (hostile_files.content(b"data.folder = 'x'\nadapter.rnak = 3"), "did you mean adapter.rank"),
    "a newer version": (hostile_files.content(b"version = 99"), "version 99 is unknown"),
    "a version of 9,000 digits": (hostile_files.content(b"version = 0x", b"f" * 9000), "version a int is unknown"),
    "NaN": (hostile_files.content(b"data.folder = 'x'\ntrain.learning_rate = nan"), "finite number"),
    "endless": (hostile_files.content(b"data.folder = 'x'\ntrain.learning_rate = inf"), "finite number"),
    "nested in brackets": (hostile_files.deep_toml, "nested too deeply"),
    "nested in names": (hostile_files.dotted_toml, "nested too deeply"),
    "nested in a table": (
        hostile_files.content(b"data.folder = 'x'\n[[train.steps]]\n", b"a." * 5000, b"a = 1"), "too deeply"
    ),
    "5,000 digits": (hostile_files.content(b"data.folder = 'x'\ntrain.steps = ", b"9" * 5000), "is not TOML"),
    "9,000 hexadecimal digits": (
        hostile_files.content(b"data.folder = 'x'\ntrain.steps = 0x", b"f" * 9000), "train.steps = a"
    ),
    "a value of a megabyte": (
        hostile_files.content(b"data.folder = 'x'\ntrain.steps = '", b"x" * 900_000, b"'"), "train.steps"
    ),
    "a method of a megabyte": (
        hostile_files.content(b"data.folder = 'x'\nadapter.method = '", b"x" * 900_000, b"'"), "is no method"
    ),
    "a key of a megabyte": (
        hostile_files.content(b"data.folder = 'x'\ntrain.", b"x" * 900_000, b" = 1"), "there is no setting"
    ),
    "two megabytes": (hostile_files.content(b"#" * 2_000_000), "over 1.00 MiB"),
    "a pickle": (lambda path: hostile_files.pickled(path, path.with_name("canary")), "is not TOML"),
    "Latin-1": (hostile_files.content("data.folder = 'ü'".encode("latin-1")), "is not TOML"),
    "a page": (hostile_files.content(b"<!DOCTYPE html>"), "is not TOML"),
    "no end": (hostile_files.device, "no such TOML file or preset"),
    "a pipe": (hostile_files.pipe, "no such TOML file or preset"),
    "a folder": (hostile_files.folder, "no such TOML file or preset"),
}  # fmt: skip


@pytest.mark.parametrize("case", PRESETS)
def test_a_hostile_preset_is_refused_by_the_command_and_by_python(command: Command, tmp_path: Path, case: str) -> None:
    make, reason = PRESETS[case]
    make(tmp_path / "mine.toml")
    ended = command("train", tmp_path / "mine.toml")
    assert ended.code == 2 and reason in ended.sentence
    assert len(ended.sentence) < 2000
    with pytest.raises(ConfigError, match=re.escape(reason)):
        TrainConfig.load(tmp_path / "mine.toml")
    assert not (tmp_path / "canary").exists()


numbers = st.integers() | st.floats() | st.sampled_from([10**400, -1, 0])
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)
SETTINGS = [tuple(setting.name.split(".")) for setting in all_settings()] + [("x", "y")]


@QUICK
@given(given_values=st.dictionaries(st.sampled_from(SETTINGS), values, max_size=4), sections=st.booleans())
def test_settings_of_any_kind_are_a_config_or_refused(
    given_values: dict[tuple[str, str], Any], sections: bool, tmp_path: Path
) -> None:
    nested: dict[str, Any] = {"data": {"folder": str(tmp_path)}}
    for (section, name), value in given_values.items():
        nested.setdefault(section, {})[name] = value
    if sections:
        nested |= {section: value for (section, _), value in given_values.items()}
    try:
        TrainConfig.parse(nested, "here").save(tmp_path / "saved.toml")
    except ConfigError as error:
        assert all(len(line) <= 1000 for line in str(error).splitlines())


@QUICK
@given(content=st.binary(max_size=200) | st.text(alphabet="data.folder='x'[]{}\n=\"#0123456789_", max_size=200))
def test_a_preset_of_any_bytes_is_a_config_or_refused(content: bytes | str, tmp_path: Path) -> None:
    path = tmp_path / "any.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        TrainConfig.load(path)
    except ConfigError as error:
        assert "any.toml" in str(error)


PARTS = ["(", ")", "[", "]", ":", "<lora:", ">", "<", "\\", "BREAK", " ", "1.2", "a", ",", "=", "te", "é", "\n", "nan"]
texts = st.text(max_size=200) | st.lists(st.sampled_from(PARTS), max_size=60).map("".join)


@QUICK
@given(text=texts)
def test_a_prompt_of_any_text_is_read_or_refused(text: str, tmp_path: Path) -> None:
    assert prompt_weighting.parse_weights(text)
    try:
        plain = lora_tags.parse_lora_tags(text)
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert isinstance(plain.text, str)


SAID = [
    "Steps: ",
    "3",
    ", ",
    "Size: ",
    "x",
    "\n",
    "Negative prompt: ",
    '"',
    "\\",
    "Seed: ",
    "9" * 30,
    "CFG scale: ",
    "nan",
]


@QUICK
@given(text=texts | st.lists(st.sampled_from([*SAID, "Sampler: ", "Prediction type: "])).map("".join))
def test_a_pictures_text_of_any_kind_is_recalled_or_refused(text: str) -> None:
    infotext.parse_parameters(text)
    try:
        found = infotext.recall_text(text, ["a"])
    except ConfigError:
        assert not text.strip()
    else:
        assert all(abs(number) < 2**53 for number in found.numbers.values())


@QUICK
@given(
    kind=st.sampled_from([*axes.AXIS_TYPES, "", "x"]),
    text=texts | st.text(alphabet="0123456789-+.,()[] e", max_size=60),
)
def test_an_axis_of_any_text_is_read_or_refused(kind: str, text: str) -> None:
    try:
        assert len(axes.parse_axis(kind, text, [1, 2]).values) <= axes.MAX_VALUES
    except ConfigError as error:
        assert len(str(error)) < 5 * axes.MAX_LETTERS


LONG = {
    "open brackets": "(" * 100_000, "open brackets with words": "(a" * 50_000, "nested": "(a" * 33_000 + ")" * 33_000,
    "square": "[a" * 50_000, "both kinds": "([a)]" * 20_000, "tags that never end": "<lora:" * 17_000,
    "a tag of 100 kB": f"<lora:{'a' * 100_000}>", "a tag of colons": f"<lora:{':' * 100_000}>",
    "digits": ":" + "1" * 100_000, "digits in a bracket": "(a:" + "1" * 100_000, "dots": "(a:" + "1." * 50_000,
    "blanks": " " * 100_000, "blanks behind a colon": "(a:" + " " * 100_000, "tabs": "\t " * 50_000 + "<lora:a:1>",
    "breaks": " BREAK " * 14_000, "backslashes": "\\" * 100_001, "one word": "a" * 100_000,
    "one line of settings": "Steps: 3, " + "a" * 900_000, "settings of blanks": "Steps: 3, " + " " * 900_000,
    "settings of words": "Steps: 3, " + "a b-" * 200_000, "quotes": "Steps: 3, a b: " + '"' * 900_000,
    "escapes": 'Steps: 3, a b: "' + "\\" * 900_001, "colons": "Steps: 3" + ",ab:" * 200_000,
}  # fmt: skip
READ = """
import json, sys
from pathlib import Path
from sdlora.errors import SdloraError
from sdlora.formats import lora_tags
from sdlora.generation import axes, infotext, prompt_weighting
for text in json.loads(Path(sys.argv[1]).read_text()):
    for read in (lora_tags.parse_lora_tags, prompt_weighting.parse_weights, lambda text: infotext.recall_text(text, []),
                 *(lambda text, kind=kind: axes.parse_axis(kind, text, [1]) for kind in axes.AXIS_TYPES)):
        try:
            read(text)
        except SdloraError as error:
            assert len(str(error)) < 1_000_000
print("read")
"""


def test_the_longest_prompts_are_read_in_a_time_in_proportion(tmp_path: Path) -> None:
    """Quadratic time would make one such text take from a minute to hours."""
    (tmp_path / "texts.json").write_text(json.dumps([*LONG.values()]))
    command = [sys.executable, "-c", READ, str(tmp_path / "texts.json")]
    assert subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout == "read\n"


@pytest.mark.parametrize("case", LONG)
def test_a_hostile_prompt_is_a_few_words_on_the_page(app: AppState, case: str) -> None:
    form = build_create_tab(app).form
    text = adapter_rows.describe_tags(app, form.rows, form.prompt, form_values(form, prompt=LONG[case]))
    assert len(text) < 1000


def test_a_caption_of_html_is_kept_as_text(app: AppState, tmp_path: Path) -> None:
    caption = "<script>alert(1)</script>"
    noise_image().save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(caption)
    drop_files(app, [tmp_path / "a.png", tmp_path / "a.txt"])
    project = Project(app.data_dir, "mine")
    assert project.caption(project.images()[0]) == caption
    assert "<script>" not in "".join(images_tab._check(app, "mine", "pocket", {}, []))
