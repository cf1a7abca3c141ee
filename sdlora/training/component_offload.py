"""Parts of a base that take turns on a graphics card: what is not at work waits in main memory."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdlora.families.base import Family


class ComponentOffload:
    """Moves the parts of ``family`` between its ``device`` and main memory; does nothing unless ``on``.

    Where a device shares its memory with the processor it is never on: there is nowhere else to wait.
    """

    def __init__(self, family: "Family", device: str, on: bool):
        self.family = family
        self.device = device
        self.on = on and device.startswith("cuda")

    def for_image_encoding(self) -> None:
        """Pictures are encoded next: the VAE alone is on the device."""
        self._place({"vae"})

    def for_text_encoding(self) -> None:
        """Texts are encoded next: their encoders alone."""
        self._place(set(self.family.text_encoders))

    def for_training(self, text: bool) -> None:
        """The model trains next: the denoiser, and where they train (``text``) the text encoders."""
        self._place(set(self.family.models) if text else {self.family.denoiser})

    def for_generation(self) -> None:
        """Images are generated next: all parts are needed."""
        self._place(set(self.family.modules))

    def _place(self, names: set[str]) -> None:
        """Put the parts called ``names`` on the device; the others leave it first."""
        if not self.on:
            return
        for name in sorted(self.family.modules, key=lambda name: name in names):
            self.family.modules.place(name, self.device if name in names else "cpu")
