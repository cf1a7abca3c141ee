"""Names of a family in adapter files: of its layers, in the keys of other tools, and of itself, in their headers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LayerNaming:
    """Paths of a component's layers, as adapter files spell them."""

    steps: tuple[str, ...] = ()
    """Every step of a path except numbers: kohya's keys join steps by ``_``, which some contain."""
    roots: tuple[str, ...] = ()
    """First steps of paths; a file that names no component means by them the denoiser."""
    prefix: str = ""
    """Beginning of classic paths that some files leave out, such as ``text_model.``."""
    flat: bool = False
    """True if the installed library's module has no ``prefix``."""
    text_inputs: tuple[str, ...] = ()
    """Ends of the paths of layers whose input is as wide as the text that the denoiser reads."""
    unbiased: tuple[str, ...] = ()
    """Ends of the paths of layers that never have a bias."""


@dataclass(frozen=True)
class BaseNames:
    """Names of a kind of base model in sd-scripts, in ModelSpec, and in A1111's side files."""

    version: str
    """``ss_base_model_version``."""
    architecture: str
    """``modelspec.architecture``, without ``/lora``."""
    sd_version: str = "Unknown"


@dataclass(frozen=True)
class AdapterNaming:
    """A family in adapter files: prefixes and names of its layers, its header, and what its adapters are known by."""

    prefixes: Mapping[str, str]
    """Beginnings of kohya's keys by component, without the ``_`` behind them."""
    bases: Mapping[str, BaseNames]
    """Names of the family by prediction type."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Components by other beginnings that are read."""
    to_kohya: Callable[[str], str] = str
    """Function from a layer's path within the denoiser to the path that kohya's keys spell."""
    from_kohya: Callable[[str], str] = str
    """Inverse of ``to_kohya``; keeps a path that other tools spell as diffusers does."""
    network_module: str = "networks.lora"
    """``ss_network_module`` of plain LoRAs."""
    v2: bool = False
    """``ss_v2``."""
    version_prefix: str | None = None
    """Beginning of ``ss_base_model_version`` in files of any tool."""
    text_width: int | None = None
    """Width of the text that the denoiser reads, if all bases of the family have the same."""
    own_layers: str | None = None
    """Regular expression of classic paths that, of families with the same components, this one alone has."""
    own_keys: tuple[str, ...] = ()
    """Beginnings of kohya's keys that this family alone has."""

    @property
    def components(self) -> dict[str, str]:
        """Components by every beginning of keys that is read."""
        return {prefix: component for component, prefix in self.prefixes.items()} | dict(self.aliases)
