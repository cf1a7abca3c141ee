"""Stable Diffusion 2.x: OpenCLIP's larger text encoder; the 768-v models predict the velocity.

Its text is read from the last layer but one. diffusers' folders have the encoder without the last, so the layer that
``clip_skip`` 1 reads is that one.
"""

from sdlora.families.sd1 import SD1


class SD2(SD1):
    """A loaded Stable Diffusion 2.0 or 2.1."""

    name = "sd2"
