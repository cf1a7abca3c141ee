"""Training images for models that look at them: in batches, with the unusable ones named."""

from PIL import Image

from sdlora.data.dataset import Example
from sdlora.vision.training_images import batches, notice_unusable, open_batch


def test_the_last_batch_may_be_shorter():
    assert [*batches(range(5), 2)] == [[0, 1], [2, 3], [4]]
    assert [*batches([], 2)] == []


def test_an_image_that_is_gone_or_damaged_is_named_and_the_others_are_opened(tmp_path):
    Image.new("RGB", (40, 50)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"nothing of the kind")
    problems, events = [], []
    opened = open_batch([Example(tmp_path / name, "", 40, 50) for name in ("a.png", "b.png", "c.png")], problems)
    assert [(example.path.name, image.size) for example, image in opened] == [("a.png", (40, 50))]
    assert [line.partition(":")[0] for line in problems] == ["b.png", "c.png"]
    notice_unusable(problems, events.append)
    assert "2 files (b.png, c.png)" in events[0].message
    notice_unusable([], events.append)
    assert len(events) == 1
