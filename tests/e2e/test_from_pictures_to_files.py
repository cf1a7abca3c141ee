"""From ten pictures to files that every tool loads: pictures, training, generation, export."""

import zipfile
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from sdlora.formats import read_adapter
from sdlora.generation.infotext import read_parameters
from tests.support.browser import PICTURES, STEPS, wait_until


def generated(server) -> list[Path]:
    """Return the generated images, oldest first."""
    return sorted((server.data_dir / "creations").glob("[0-9]*.png"), key=lambda path: path.stat().st_mtime_ns)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_ten_pictures_come_by_choice_and_by_drop_and_keep_their_captions(server, visit):
    folder = server.data_dir / "projects" / "mystyle"
    assert len(list(folder.glob("*.png"))) == 10
    assert (folder / "001.txt").read_text() == "ohwx style, a house, said anew"
    fresh = visit(server.address)
    fresh.choose("#project", "mystyle")
    fresh.see("10 pictures ready", "#pictures-status")
    caption = fresh.page.get_by_label("Caption of 001.png")
    wait_until(lambda: caption.input_value() == "ohwx style, a house, said anew")
    assert fresh.page.get_by_label("Caption of 010.png").input_value()


def test_a_training_is_watched_and_its_adapter_draws_without_a_reload(trained, visit):
    assert trained.shown["stop"]
    assert trained.shown["previews"] and trained.shown["plot"]
    assert trained.shown["adapter"] == "mystyle"
    assert trained.shown["prompt"].startswith("ohwx style")
    assert read_adapter(trained.run / "adapter.safetensors").modules
    assert len(list((trained.run / "samples").glob("*.png"))) == 10  # Two prompts, before and at every quarter.


def test_odd_files_are_said_in_a_sentence_each_and_the_good_ones_kept(server, visit, tmp_path):
    good = Image.open(PICTURES[0]).convert("RGB")
    good.save(tmp_path / "größe ü.png")
    good.save(tmp_path / "again.png")
    (tmp_path / "fake.png").write_text("<html>no picture</html>")
    Image.new("1", (13000, 13000)).save(tmp_path / "huge.png")
    turned = Image.open(PICTURES[2]).convert("RGB").resize((128, 200))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    (tmp_path / "alone.txt").write_text("of no picture")
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        content = BytesIO()
        Image.open(PICTURES[4]).save(content, "PNG")
        archive.writestr("../../outside.png", content.getvalue())
        archive.writestr("outside.txt", "ohwx style, from a zip file")
    names = ("größe ü.png", "again.png", "fake.png", "huge.png", "turned.png", "alone.txt", "more.zip")
    visitor = visit(server.address)
    visitor.project("odd files")
    visitor.give("#drop-files", [tmp_path / name for name in names])
    visitor.see("3 pictures ready", "#pictures-status")
    text = visitor.page.locator("#pictures-remarks").inner_text()
    assert all(name in text for name in ("again.png", "fake.png", "huge.png", "alone.txt"))
    assert not (server.data_dir / "outside.png").exists()
    visitor.see("turned", "#pictures-findings")


@pytest.fixture(scope="module")
def half_strength(server, visits):
    """A page with ``mystyle`` at scale 0.5 and seed 7, after rows came and went, and the two images it generated."""
    page = visits(server.address)
    page.tab("Create")
    page.choose("#adapter-1", "mystyle")
    page.fill("#prompt", "")
    page.draw_quickly()
    page.fill("#seed", "7")
    page.click("#more-adapters")
    page.choose("#adapter-2", f"mystyle-{STEPS // 2:06d}")
    slider = page.page.get_by_label("Scale 1", exact=False).first
    slider.fill("0.5")
    slider.press("Tab")
    page.click("#more-adapters")
    page.click("#fewer-adapters")
    assert page.value("#adapter-2") == f"mystyle-{STEPS // 2:06d}"
    assert float(slider.input_value()) == 0.5
    page.create("ohwx style, a red house on grass")
    page.create("ohwx style, a red house on grass")
    return SimpleNamespace(page=page, images=generated(server)[-2:])


def test_values_stay_when_rows_come_and_go_and_scale_0_is_the_base(half_strength, server, visit):
    page, (both, again) = half_strength.page, half_strength.images
    assert (pixels(both) == pixels(again)).all()  # The same seed, the same pixels.
    assert "<lora:mystyle:0.5>" in read_parameters(both).prompt

    page.page.get_by_label("Scale 1", exact=False).first.fill("0")
    page.page.get_by_label("Scale 2", exact=False).first.fill("0")
    page.create("ohwx style, a red house on grass")
    for row in (1, 2):
        page.choose(f"#adapter-{row}", "none")
    page.create("ohwx style, a red house on grass")
    off, base = generated(server)[-2:]
    assert (pixels(off) == pixels(base)).all()
    assert (pixels(off) != pixels(both)).any()


def test_a_picture_tells_what_it_was_made_from_and_fills_the_fields(half_strength, server, visit):
    image = half_strength.images[0]
    fresh = visit(server.address)
    fresh.tab("Create")
    fresh.page.locator("#reading button").first.click()
    fresh.give("#read-picture", [image])
    fresh.see("The settings are filled in", "#read-message")
    assert fresh.value("#seed") == read_parameters(image).settings["Seed"] == "7"
    assert fresh.value("#adapter-1") == "mystyle"
    fresh.click("#create-button")
    fresh.see("1 picture drawn.", "#create-status")
    assert (pixels(generated(server)[-1]) == pixels(image)).all()


def test_a_scale_stays_when_its_list_is_looked_at_and_a_page_at_rest_asks_for_nothing(server, visit):
    visitor = visit(server.address)
    visitor.tab("Create")
    visitor.choose("#adapter-1", "mystyle")
    slider = visitor.page.get_by_label("Scale 1", exact=False).first
    slider.fill("0.3")
    slider.press("Tab")
    visitor.page.locator("#adapter-1 input").first.click()
    visitor.page.locator("#prompt textarea").click()
    visitor.project("looked at")
    visitor.page.get_by_label("Trigger word").fill("other")
    visitor.choose("#project", "mystyle")
    visitor.see("10 pictures ready", "#pictures-status")
    visitor.page.wait_for_timeout(3000)
    requests = []
    visitor.page.on(
        "request", lambda request: requests.append(request.post_data) if "queue/join" in request.url else None
    )
    visitor.page.wait_for_timeout(3000)
    assert requests == []
    assert visitor.page.get_by_label("Trigger word").input_value() == "ohwx style"
    assert float(slider.input_value()) == 0.3


def test_a_grid_has_its_labels_and_the_best_of_it_is_saved(server, visit):
    visitor = visit(server.address)
    visitor.tab("Create")
    visitor.draw_quickly()
    visitor.fill("#prompt", "ohwx style, a red house on grass")
    visitor.page.locator("#compare button").first.click()
    wait_until(lambda: visitor.value("#compare-subject") == "mystyle")
    visitor.fill("#values-X", "0, 1")
    visitor.fill("#values-Y", f"{STEPS // 2}, {STEPS}")
    visitor.click("#compare-button")
    visitor.see("The grid is finished", "#compare-status")
    cells = visitor.page.locator("#compare-grid [data-cell] img")
    assert cells.count() == 4
    labels = visitor.page.locator("#compare-grid").inner_text()
    assert all(label in labels for label in ("scale 0", "scale 1", f"step {STEPS // 2}", f"step {STEPS}"))
    sheet = Image.open(visitor.download("#compare-sheet", server.data_dir))
    assert sheet.width > 2 * 128 and sheet.height > 2 * 128
    cells.last.click()
    visitor.fill("#best-name", "the best")
    visitor.click("#best-save")
    visitor.see("Saved as", "#best-saved")
    (kept,) = (server.data_dir / "adapters").glob("the*best*.safetensors")
    assert read_adapter(kept).metadata["modelspec.thumbnail"].startswith("data:image/")


def test_every_export_downloads_and_loads(server, visit, tmp_path):
    page = visit(server.address)
    page.tab("Train")
    for which, name in (("kohya", "mystyle.safetensors"), ("diffusers", "mystyle-diffusers.safetensors")):
        path = page.download(f"#download-{which}", tmp_path)
        assert path.name == name
        assert read_adapter(path).modules
    page.tab("Library")
    page.page.locator("[data-do=details][data-name=mystyle]").click()
    page.page.locator("#library-download").wait_for()
    page.page.get_by_label("fp16").first.check()
    half = page.download("#library-download", tmp_path)
    assert half.stat().st_size < 0.6 * (tmp_path / "mystyle.safetensors").stat().st_size
    assert read_adapter(half).modules
    with zipfile.ZipFile(page.download("#library-pack", tmp_path)) as bundle:
        names = bundle.namelist()
    assert any(name.endswith("config.toml") for name in names)
    assert any(name.endswith(".safetensors") for name in names)


def test_an_adapter_is_taken_in_deleted_and_brought_back(server, visit, tmp_path):
    page = visit(server.address)
    copy = tmp_path / "friend.safetensors"
    with safe_open(server.data_dir / "runs" / "mystyle" / "adapter.safetensors", "pt") as file:
        tensors = {name: 0.5 * file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        save_file(tensors, copy, file.metadata())  # Changed: the library keeps the same bytes only once.
    (tmp_path / "broken.safetensors").write_bytes(b"no adapter at all")
    page.tab("Library")
    page.tab("Import")
    page.give("#import-files", [copy, tmp_path / "broken.safetensors"])
    kept = server.data_dir / "adapters" / "friend.safetensors"
    wait_until(kept.is_file)
    page.see("broken", "#import-report")
    assert not (server.data_dir / "adapters" / "broken.safetensors").exists()
    page.tab("Adapters")
    page.page.locator("[data-do=details][data-name=friend]").click()
    page.click("#library-delete")
    page.click("#really-delete")
    wait_until(lambda: not kept.exists())
    page.page.locator("#library-top ~ * #undo-delete, #undo-delete").first.click()
    wait_until(kept.is_file)


def test_two_adapters_are_combined_and_what_comes_of_it_is_in_the_library(server, visit):
    adapter = (server.data_dir / "runs" / "mystyle" / "adapter.safetensors").read_bytes()
    (server.data_dir / "adapters").mkdir(exist_ok=True)
    (server.data_dir / "adapters" / "other.safetensors").write_bytes(adapter)
    visitor = visit(server.address)
    visitor.tab("Library")
    visitor.tab("Tools")
    visitor.page.get_by_role("button", name="Combine adapters into one").click()
    for number, name in ((1, "mystyle"), (2, "other")):
        visitor.page.locator(f"#combine-{number} input").click()
        visitor.page.get_by_role("option", name=name, exact=True).last.click()  # The list before may be closing still.
    visitor.page.locator("#combine-scale-2 input[type=number]").fill("0.5")
    visitor.click("#combine-overlap-button")
    visitor.see("are nearly the same change", "#combine-overlap")  # It is the same file.
    visitor.page.locator("#combine-method input").click()
    visitor.page.get_by_role("option", name="TIES", exact=True).click()
    visitor.page.locator("#combine-density input").wait_for()
    visitor.click("#combine-button")
    visitor.see("say how much to keep", "#combine-status")
    visitor.page.locator("#combine-method input").click()
    visitor.page.get_by_role("option", name="Sum", exact=True).click()
    visitor.page.locator("#combine-density").wait_for(state="hidden")
    visitor.fill("#combine-name", "both")
    visitor.page.locator("#combine-button").dblclick()  # One is made, for all of two clicks.
    visitor.see("both is in the library", "#combine-status")
    assert visitor.page.locator("#combine-cancel").is_hidden()
    one, both = (
        read_adapter(path)
        for path in (
            server.data_dir / "runs/mystyle/adapter.safetensors",
            server.data_dir / "adapters/both.safetensors",
        )
    )
    path, module = next(iter(both.modules.items()))
    assert module.rank == 2 * one.modules[path].rank
    visitor.click("#combine-button")
    visitor.see("choose another name", "#combine-status")
    assert len(list((server.data_dir / "adapters").glob("both*.safetensors"))) == 1
    visitor.tab("Adapters")
    visitor.page.locator("[data-do=details][data-name=both]").click()
    visitor.click("#library-look-button")
    visitor.page.locator("#library-layers img").wait_for()
    assert visitor.page.locator("#library-layers tbody tr").count() == len(both.modules)
    visitor.tab("Create")
    visitor.page.locator("#adapter-1 input").first.click()
    visitor.page.get_by_role("option", name="both", exact=True).wait_for()
