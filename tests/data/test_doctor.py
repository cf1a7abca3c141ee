"""The doctor: each thing that is wrong or could be better is said once, with its remedy and its pictures."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdlora.cli.main import main
from sdlora.data import doctor
from sdlora.data.buckets import assign_buckets, bucket_step
from sdlora.data.concepts import run_concepts
from sdlora.data.dataset import load_dataset
from sdlora.data.findings import Finding
from sdlora.data.settings import ClassImageSettings, Concept, Data
from sdlora.data.unknown_words import prompt_notices, word_notices
from sdlora.families.known_words import known_words


def scene(seed: int, width: int = 128, height: int = 128) -> Image.Image:
    """A smooth picture like no other."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def healthy(folder: Path) -> Path:
    """Ten pictures with captions of which nothing is to be said."""
    for number in range(10):
        scene(number).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"sks dog, place {number}")
    return folder


def found(folder: Path, native_size: int = 128, **settings: object) -> dict[str, Finding]:
    """Findings by their first words."""
    data = Data(folder=folder, **{"trigger": "sks", "class_name": "dog", **settings})
    return {finding.text.split(":")[0]: finding for finding in doctor.check_dataset(data, native_size)}


def names(finding: Finding) -> list[str]:
    return [path.name for path in finding.images]


def test_of_a_good_set_nothing_is_said(healthy):
    assert found(healthy) == {}


def test_every_look_is_counted(healthy):
    progress = []
    doctor.check_dataset(Data(folder=healthy), 128, lambda done, total: progress.append((done, total)))
    assert progress == [(number, 10) for number in range(1, 11)]


def test_copies_and_look_alikes_are_told_apart(healthy):
    (healthy / "copy.png").write_bytes((healthy / "3.png").read_bytes())
    scene(4).resize((140, 140)).save(healthy / "small.jpg", quality=60)
    scene(5).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(healthy / "turned over.png")
    for name in ("copy", "small", "turned over"):
        (healthy / f"{name}.txt").write_text("sks dog")
    findings = found(healthy)
    assert (
        names(findings["The same file twice"]) == ["copy.png"]
        and "copy.png is 3.png" in findings["The same file twice"].text
    )
    near = findings["Nearly the same picture"]
    assert sorted(names(near)) == ["4.png", "5.png", "small.jpg", "turned over.png"]
    assert "5.png and turned over.png (mirrored)" in near.text and near.severity == "could"
    assert len(findings) == 2


def test_a_set_of_one_picture_over_and_over_must_be_mended(folder):
    for number in range(10):
        scene(0).resize((128 + number, 128 + number)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"sks dog, place {number}")
    (finding,) = found(folder).values()
    assert finding.severity == "must" and "10 of 10 pictures are nearly the same" in finding.text


def test_small_and_long_pictures_are_named_with_what_happens_to_them(healthy):
    scene(20, 100, 120).save(healthy / "little.png")
    scene(21, 900, 130).save(healthy / "banner.png")
    for name in ("little", "banner"):
        (healthy / f"{name}.txt").write_text("sks dog")
    findings = found(healthy)
    small, cut = findings["Smaller than the training size of 128 pixels"], findings["Cropped to their training shape"]
    assert names(small) == ["little.png"] and "side has 100" in small.text
    assert names(cut) == ["banner.png"] and "42% of the area" in cut.text  # 900 x 130 to 1:4, the longest shape
    assert len(found(healthy, native_size=512)["Smaller than the training size of 512 pixels"].images) == 12


def test_a_run_reports_what_the_doctor_finds_without_pixels(healthy):
    scene(20, 100, 120).save(healthy / "little.png")
    scene(21, 900, 130).save(healthy / "banner.png")
    (healthy / "copy.png").write_bytes((healthy / "3.png").read_bytes())
    data = Data(folder=healthy, trigger="sks", class_name="dog")
    examples = load_dataset(data).examples
    sizes = assign_buckets(examples, 128, bucket_step(128))
    notices = doctor.training_notices(data, 128, examples, sizes)
    assert notices == [finding.text for finding in doctor.check_dataset(data, 128) if finding.images]
    assert [notice.split(":")[0] for notice in notices] == [
        "The same file twice", "Without a caption of their own", "Smaller than the training size of 128 pixels",
        "Cropped to their training shape",
    ]  # fmt: skip
    square = assign_buckets(examples, 128, 16, buckets=False)
    assert "Up to 86% of the area" in doctor.training_notices(data, 128, examples, square)[-1]


def test_a_run_gives_no_advice_on_a_set_that_will_do(healthy):
    for file in [*healthy.glob("*.txt"), *sorted(healthy.glob("*.png"))[:5]]:
        file.unlink()
    data = Data(folder=healthy, trigger="sks")
    examples = load_dataset(data).examples
    sizes = assign_buckets(examples, 128, bucket_step(128))
    assert doctor.training_notices(data, 128, examples, sizes) == []
    assert {finding.severity for finding in doctor.check_dataset(data, 128)} == {"could"}


def test_repeats_of_kohyas_folders_are_reported(healthy):
    (healthy / "10_sks dog").mkdir()
    (healthy / "0.png").rename(healthy / "10_sks dog" / "0.png")
    assert "10_sks dog: each picture is seen 10 times an epoch." in [
        finding.text for finding in doctor.check_dataset(Data(folder=healthy, trigger="sks"), 128)
    ]


def test_what_is_taken_care_of_is_said_and_asks_for_nothing(healthy):
    exif = Image.Exif()
    exif[0x0112] = 6
    scene(30).save(healthy / "tilted.jpg", exif=exif)
    clear = scene(31).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    clear.save(healthy / "clear.png")
    for name in ("tilted", "clear"):
        (healthy / f"{name}.txt").write_text("sks dog")
    findings = found(healthy)
    assert {finding.severity for finding in findings.values()} == {"fine"}
    assert names(findings["Turned upright as the camera noted (EXIF)"]) == ["tilted.jpg"]
    assert names(findings["Transparent"]) == ["clear.png"] and "laid on white" in findings["Transparent"].text
    assert "#00ff00" in found(healthy, background="#00ff00")["Transparent"].text


def test_captions_missing_without_trigger_or_all_the_same(healthy):
    (healthy / "0.txt").unlink()
    (healthy / "1.txt").write_text("a dog in the grass")
    finding = found(healthy)
    assert (
        names(finding["Without a caption of their own"]) == ["0.png"]
        and "“sks dog”" in next(iter(finding.values())).text
    )
    assert names(finding["Captions without the trigger “sks”"]) == ["1.png"]
    for number in range(10):
        (healthy / f"{number}.txt").write_text("sks, a dog in the grass")
    (finding,) = found(healthy).values()
    assert finding.text.startswith("All captions are the same: “sks, a dog in the grass”")
    for number in range(10):
        (healthy / f"{number}.txt").write_text("a photo of sks dog")  # how a subject is often captioned
    assert found(healthy) == {}


def test_pictures_that_no_word_calls_must_be_mended(healthy):
    for file in healthy.glob("*.txt"):
        file.unlink()
    (finding,) = found(healthy, trigger="", class_name="").values()
    assert finding.severity == "must" and "give a trigger word" in finding.text and len(finding.images) == 10


@pytest.mark.parametrize(("number", "severity"), [(2, "must"), (5, "could")])
def test_too_few_pictures_are_said_to_be_too_few(folder, number, severity):
    for seed in range(number):
        scene(seed).save(folder / f"{seed}.png")
        (folder / f"{seed}.txt").write_text(f"sks dog {seed}")
    (finding,) = found(folder).values()
    assert finding.severity == severity and f"{number} pictures" in finding.text


def test_what_cannot_be_used_comes_first_and_a_missing_folder_is_a_sentence(healthy):
    (healthy / "fake.png").write_text("<html>")
    first, *rest = found(healthy).values()
    assert first.severity == "must" and names(first) == ["fake.png"] and rest == []
    (finding,) = found(healthy / "nowhere").values()
    assert finding.severity == "must" and "does not exist" in finding.text


def test_a_changed_file_is_looked_at_again(healthy):
    assert found(healthy) == {}
    scene(1).resize((150, 150)).save(healthy / "0.png")
    assert names(found(healthy)["Nearly the same picture"]) == ["0.png", "1.png"]


def test_it_needs_no_torch():
    code = "import sys, sdlora.data.doctor, sdlora.data.projects; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_line_tells_the_findings_and_whether_to_mend_first(healthy, capsys):
    arguments = ["check", str(healthy), "--trigger", "sks", "--class-name", "dog", "--base", "pocket"]
    assert main(arguments) == 0
    (healthy / "fake.png").write_text("<html>")
    assert main(arguments) == 3
    assert "must  fake.png: is an HTML page; save it as PNG or JPEG." in capsys.readouterr().out


def test_choices_and_several_lines_are_pointed_out_while_wildcards_are_off(healthy):
    (healthy / "1.txt").write_text("sks dog, {red|blue} place\n")
    (healthy / "2.txt").write_text("sks dog at home\nsks dog, sitting")
    (healthy / "3.txt").write_text("sks dog, {masterpiece}")
    finding = found(healthy)["Several lines, or choices such as {red|blue}"]
    assert names(finding) == ["1.png", "2.png"] and "data.wildcards" in finding.text and finding.severity == "could"
    assert found(healthy, wildcards=True) == {}


def test_wildcards_that_are_not_read_are_named(healthy):
    (healthy / "1.txt").write_text("sks dog, {red|blue place")
    (healthy / "2.txt").write_text("sks dog, {2$$red|blue} __place__")
    finding = found(healthy, wildcards=True)["Read as it stands"]
    assert names(finding) == ["1.png", "2.png"] and "{ 2$$ __place__" in finding.text


def test_words_that_a_small_base_cannot_know_are_named_with_the_nearest(healthy):
    known = known_words("pocket")
    for number in range(10):
        (healthy / f"{number}.txt").write_text("sks cat on sand" if number else "sks cat, a photo by the sea")
    (finding,) = doctor.check_dataset(Data(folder=healthy, trigger="sks", class_name="cat"), 128, known=known)
    assert names(finding) == ["0.png"] and finding.severity == "could"
    assert "no meaning for: photo (nearest: picture), sea (nearest: on water)." in finding.text
    data = Data(folder=healthy, trigger="sks", class_name="dog")
    finding = next(each for each in doctor.check_dataset(data, 128, known=known) if "no meaning" in each.text)
    assert "dog (nearest: cat)" in finding.text and len(finding.images) == 10
    assert not any("no meaning" in each.text for each in doctor.check_dataset(data, 128))


def test_unknown_words_of_prompts_are_named_by_their_setting(healthy):
    known, data = known_words("pocket"), Data(folder=healthy, trigger="sks")
    concepts = run_concepts(data, ClassImageSettings(weight=1.0, class_prompt="a dog"))
    notices = prompt_notices(known, concepts, ["a sks cat on grass", "a sks castle"])
    assert [notice.partition("; its images")[0] for notice in notices] == [
        "sample.prompts: the base model has no meaning for castle (nearest: house)",
        "prior.class_prompt: the base model has no meaning for dog (nearest: cat)",
    ]
    unused = run_concepts(data, ClassImageSettings(class_prompt="a dog"))
    assert prompt_notices(known, unused, ["a sks cat"]) == []
    assert prompt_notices(None, concepts, ["a castle"]) == []


def test_unknown_words_of_several_concepts_are_told_apart(healthy):
    known = known_words("pocket")
    own = [
        Concept(folder=healthy, trigger=trigger, class_name=name) for trigger, name in (("sks", "dog"), ("zwx", "cat"))
    ]
    concepts = run_concepts(Data(folder=healthy), ClassImageSettings(), own)
    (notice,) = word_notices(known, concepts, [])
    assert notice.startswith("concept 1 (sks): The base model has no meaning for: dog (nearest: cat).")
