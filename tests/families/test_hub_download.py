"""Downloads of base models from a hub on this machine."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest

from sdlora.api.models import base_choices, download_job
from sdlora.cli.main import main
from sdlora.errors import BusyError, ConfigError, FileError, ModelError
from sdlora.events import Progress
from sdlora.families import hub_download
from sdlora.families.base_models import locate_base
from sdlora.families.detect import hub_family, hub_size
from sdlora.families.hub_download import download_model
from sdlora.families.known_bases import KNOWN_BASES
from sdlora.families.loading import load_family
from sdlora.families.settings import Model
from sdlora.filesystem.locks import hold_lock
from tests.support.hub_server import HubServer
from tests.support.page_server import free_port

MODEL = Model(base="someone/model")
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def hub(tiny_base, tmp_path, monkeypatch):
    """A hub with a tiny model among files that are not needed, an empty cache, and no file too small to resume."""
    folder = tmp_path / "repository"
    shutil.copytree(tiny_base, folder)
    for name in ("v1-5.ckpt", "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors"):
        (folder / name).write_bytes(b"never asked for")
    server = HubServer(MODEL.base, folder)
    server.use(monkeypatch, tmp_path / "hub")
    monkeypatch.setattr(hub_download, "LARGE", 1)
    yield server
    server.close()


def ignore(event):
    pass


def test_a_download_has_what_loading_needs_and_nothing_else(hub, monkeypatch):
    events: list[Progress] = []
    folder = download_model(MODEL, events.append)
    weights = {name for name in hub.sent if name.endswith(".safetensors")}
    assert not any(name.endswith((".bin", ".ckpt", ".fp16.safetensors")) for name in hub.sent)
    assert (events[-1].unit, events[-1].done) == ("bytes", events[-1].total)
    assert events[-1].total >= sum((folder / name).stat().st_size for name in weights)
    assert [event.done for event in events] == sorted(event.done for event in events)
    sent = dict(hub.sent)
    assert load_family(MODEL).source == MODEL.base
    assert download_model(MODEL, ignore) == folder
    assert hub.sent == sent
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert load_family(MODEL).source == MODEL.base


def test_a_download_that_broke_off_goes_on_where_it_ended(hub, monkeypatch):
    size = (hub.folder / UNET).stat().st_size
    monkeypatch.setattr(hub_download, "LARGE", size)  # The UNet is the one large file.
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 4096)  # What is smaller is lost.
    kept = size // 2 // 4096 * 4096
    hub.cut_after = kept
    with pytest.raises(ModelError, match=r"^someone/model: the download broke off .* download it again to go on"):
        download_model(MODEL, ignore)
    hub.is_down = False
    assert hub.sent == {UNET: kept}
    events: list[Progress] = []
    folder = download_model(MODEL, events.append)
    assert hub.sent[UNET] == size
    assert (folder / UNET).read_bytes() == (hub.folder / UNET).read_bytes()
    assert events[0].done > kept
    assert not list(Path(huggingface_hub.constants.HF_HUB_CACHE).rglob(f"*{hub_download.PART}"))


def test_a_token_goes_to_the_hub_alone_and_not_to_the_host_that_sends_the_weights(hub, monkeypatch):
    hub.has_cdn = True
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    folder = download_model(MODEL, ignore)
    assert (folder / UNET).read_bytes() == (hub.folder / UNET).read_bytes()
    assert hub.tokens == {"hub": {"Bearer hf_secret"}, "cdn": {None}}


def test_a_file_that_arrives_damaged_is_refused_and_fetched_anew(hub):
    hub.damaged = UNET
    with pytest.raises(ModelError, match=f"someone/model: {UNET} arrived damaged .* download it again"):
        download_model(MODEL, ignore)
    hub.damaged = ""
    assert (download_model(MODEL, ignore) / UNET).read_bytes() == (hub.folder / UNET).read_bytes()


def test_each_reason_why_nothing_is_downloaded_is_a_sentence(hub, tmp_path, monkeypatch):
    with pytest.raises(ModelError, match=r"^someone/else: the hub has no such model"):
        download_model(Model(base="someone/else"), ignore)
    hub.gated = True
    with pytest.raises(ModelError, match=r"^someone/model: is gated; accept its terms"):
        download_model(MODEL, ignore)
    hub.gated = False
    lock = hold_lock(tmp_path / "hub" / ".models--someone--model.lock", "it")
    with pytest.raises(BusyError, match=r"the download of someone/model is in use by another process"):
        download_model(MODEL, ignore)
    lock.release()
    (hub.folder / "model_index.json").unlink()
    with pytest.raises(ModelError, match=r"^someone/model: has no model_index.json"):
        download_model(MODEL, ignore)


def test_a_full_disk_and_an_unreachable_hub_are_sentences(hub, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(huggingface_hub.file_download, "http_get", full)
        with pytest.raises(ModelError, match=r"is full; free some space, or set HF_HOME to a folder with room"):
            download_model(MODEL, ignore)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ModelError, match=r"^someone/model: the hub cannot be reached"):
        download_model(MODEL, ignore)


def test_weights_in_pickles_alone_are_refused(hub):
    (hub.folder / UNET).unlink()
    with pytest.raises(ModelError, match=r"has no \.safetensors weights of unet; choose another"):
        download_model(MODEL, ignore)


def test_a_downloaded_model_is_a_choice_and_an_incomplete_one_is_none(hub, tmp_path):
    assert MODEL.base not in dict(base_choices(tmp_path))
    folder = download_model(MODEL, ignore)
    assert (MODEL.base, MODEL.base) in base_choices(tmp_path)
    (folder / UNET).unlink()
    assert MODEL.base not in dict(base_choices(tmp_path))


def test_the_command_downloads_in_a_process_of_its_own_and_lists_the_model(hub, tmp_path, capsys):
    assert main(["download", MODEL.base]) == 0
    output = capsys.readouterr()
    assert (Path(output.out.strip()) / UNET).is_file()
    assert "downloading 1.04 MiB/1.04 MiB" in output.err
    assert main(["models", "--data-dir", str(tmp_path)]) == 0
    here, to_download = capsys.readouterr().out.split("to download")
    assert MODEL.base in here and all(base.id in to_download and base.licence in to_download for base in KNOWN_BASES)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("someone/else", "the hub has no such model"), ("nonsense", "is no hub id such as stable-diffusion-v1-5/")],
)
def test_the_command_refuses_in_one_sentence(hub, name, sentence, capsys):
    assert main(["download", name]) == ConfigError.exit_code
    assert sentence in capsys.readouterr().err


def test_a_download_that_is_stopped_says_that_it_can_go_on(hub):
    job = download_job(MODEL.base)
    with pytest.raises(FileError, match="what has arrived is kept"):
        job.finish(lambda event: job.stop())


@pytest.mark.parametrize("base", KNOWN_BASES, ids=lambda base: base.family)
def test_known_bases_are_what_their_names_make_of_them(base):
    assert locate_base(base.id).kind == "hub"
    assert (hub_family(base.id), hub_size(base.id)) in ((base.family, base.native_size), ("", base.native_size))
